//! The classes of an export: indices without gaps, as other tools want them.

use diffaug::{DatasetInfo, Error, Mask, Result};
use std::collections::BTreeSet;

/// What tools call index 0.
pub const BACKGROUND: &str = "background";

/// Names of the classes, and the index of each label. Index 0 is background; the others follow the labels.
#[derive(Clone, Debug)]
pub struct Classes {
    names: Vec<String>,
    /// The index of each label; `None` where no class has it.
    indices: [Option<u8>; 256],
}

impl Classes {
    /// The classes of a dataset.
    ///
    /// # Errors
    /// When two have one name or label, or one is called `background`: tools know classes by their names.
    pub fn of(info: &DatasetInfo) -> Result<Self> {
        let mut classes: Vec<_> = info.classes.iter().collect();
        classes.sort_by_key(|class| class.label);
        let mut indices = [None; 256];
        indices[0] = Some(0);
        let mut seen = BTreeSet::from([BACKGROUND]);
        for (class, index) in classes.iter().zip(1..=u8::MAX) {
            let slot = &mut indices[usize::from(class.label)];
            if slot.is_some() || !seen.insert(class.name.as_str()) {
                return Err(Error::data(format!(
                    "the class `{}` (label {}) of {} has the name or the label of another or of the \
                     background, so no file could tell them apart",
                    class.name, class.label, info.name
                )));
            }
            *slot = Some(index);
        }
        Ok(Classes {
            names: classes.iter().map(|class| class.name.to_string()).collect(),
            indices,
        })
    }

    /// Index and name of each class but the background, from index 1.
    pub fn named(&self) -> impl Iterator<Item = (u8, &str)> {
        (1..=u8::MAX).zip(self.names.iter().map(String::as_str))
    }

    /// Turns the labels of a mask into indices, in place.
    ///
    /// # Errors
    /// When a label is no class; `id` names the sample.
    pub fn index(&self, id: &str, mask: &mut Mask) -> Result<()> {
        for label in mask.bytes_mut() {
            *label = self.indices[usize::from(*label)].ok_or_else(|| {
                Error::data(format!(
                    "sample `{id}`: the mask holds label {label}, which is no class of the dataset"
                ))
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use diffaug::Class;

    fn info(classes: &[(u8, &str)]) -> DatasetInfo {
        let mut info = DatasetInfo::single_class("eyes", "x");
        let class = |&(label, name): &(u8, &str)| Class {
            label,
            name: name.into(),
            target: true,
        };
        info.classes = classes.iter().map(class).collect();
        info
    }

    #[test]
    fn indices_follow_the_labels_without_gaps() {
        let classes = Classes::of(&info(&[(200, "cup"), (7, "disc")])).unwrap();
        let named: Vec<_> = classes.named().collect();
        assert_eq!(named, [(1, "disc"), (2, "cup")]);
        let mut mask = Mask::new(3, 1, vec![200, 0, 7]).unwrap();
        classes.index("a", &mut mask).unwrap();
        assert_eq!(mask.labels(), [2, 0, 1]);
        let mut mask = Mask::new(1, 1, vec![8]).unwrap();
        let error = classes.index("a", &mut mask).unwrap_err();
        assert!(
            error.message.contains("`a`: the mask holds label 8"),
            "{error}"
        );
    }

    #[test]
    fn classes_that_cannot_be_told_apart_are_refused() {
        for wrong in [
            [(1, "a"), (2, "a")],
            [(1, "a"), (1, "b")],
            [(1, "a"), (2, "background")],
            [(1, "a"), (0, "b")],
        ] {
            assert!(Classes::of(&info(&wrong)).is_err(), "{wrong:?}");
        }
    }
}
