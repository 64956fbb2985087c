//! Dividing a dataset into train, validation and test, the same way on every machine.
//!
//! Ids are put into natural order (`2` before `10`) and shuffled by a stream that depends on seed
//! and name of the split alone, so neither the listing order of a file system nor a library's
//! version can move a sample. Test is drawn first, so changing the share of validation leaves it
//! alone.

use crate::{
    data::{DatasetInfo, Item, NamedSplit, SplitRule},
    error::{Error, ErrorKind, Result, ResultExt},
    files::{MAX_TEXT, read_text},
    pairs::composed,
    rng,
};
use rand::Rng as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
};

/// The splits that every dataset offers besides its own.
const GENERIC: [&str; 3] = ["random", "grouped", "parts"];

/// The parts, in the order of [`Split::indices`].
const PARTS: [&str; 3] = ["train", "validation", "test"];

/// How to divide the dataset: the table `[split]` of a manifest.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct SplitOptions {
    /// A split of the dataset's literature (`paper`, `sequence`, …), or `random`, `grouped` (whole
    /// videos or patients), `parts` (as the dataset's folders say). Default: the dataset's first,
    /// else `parts`, `grouped` or `random`, whichever its samples allow first.
    #[serde(rename = "use")]
    pub name: Option<String>,
    /// A file that lists the ids instead: `{"train": […], "validation": […], "test": […]}`.
    pub file: Option<PathBuf>,
    /// Share of train that becomes validation, where the split has no validation part of its own.
    pub validation: f64,
    /// Share of all samples that becomes test; for `random` and `grouped` only.
    pub test: f64,
    /// Another seed gives another shuffle of the same sizes.
    pub seed: u64,
    /// Divide in proportion when more or fewer samples are present than the split speaks of.
    pub allow_partial: bool,
    /// Share of the training part that is used, above 0 to 1, for studies with few images; validation
    /// and test stay whole. A smaller share is part of a larger one of the same seed.
    pub keep: f64,
}

impl Default for SplitOptions {
    fn default() -> Self {
        SplitOptions {
            name: None,
            file: None,
            validation: 0.1,
            test: 0.2,
            seed: 0,
            allow_partial: false,
            keep: 1.0,
        }
    }
}

impl SplitOptions {
    /// Checks what can be checked without the dataset.
    ///
    /// # Errors
    /// When a share is not in [0, 1), or both `use` and `file` are given.
    pub fn validate(&self) -> Result<()> {
        for (field, share) in [("validation", self.validation), ("test", self.test)] {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::config(format!(
                    "`{share}` is no share, expected a number from 0 to below 1"
                ))
                .at(format!("split.{field}")));
            }
        }
        if !(self.keep > 0.0 && self.keep <= 1.0) {
            return Err(Error::config(format!(
                "`keep` is {}, expected a number above 0, at most 1",
                self.keep
            ))
            .at("split.keep"));
        }
        if let (Some(name), Some(_)) = (&self.name, &self.file) {
            return Err(Error::config(format!(
                "either the split `{name}` or a file of ids can be used, not both"
            ))
            .at("split.file"));
        }
        Ok(())
    }
}

/// The ids of each part, in natural order.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// What it is called; `file` for a list of the user's.
    pub name: String,
    /// What models learn from.
    pub train: Vec<String>,
    /// What weights and thresholds are chosen by.
    pub validation: Vec<String>,
    /// What results are reported on.
    pub test: Vec<String>,
}

impl Split {
    /// Fingerprint of the lists: hex SHA-256 of, for each part, a line `PART COUNT` and one line
    /// for each id, every line ended by a newline. The name does not count.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for (part, ids) in PARTS.iter().zip(self.parts()) {
            hash.update(format!("{part} {}\n", ids.len()));
            for id in ids {
                hash.update(format!("{id}\n"));
            }
        }
        let digest = hash.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Positions in `items` of train, validation and test.
    ///
    /// # Errors
    /// When an id is not among `items`.
    pub fn indices(&self, items: &[Item]) -> Result<[Vec<u64>; 3]> {
        let positions: HashMap<&str, u64> = (0..)
            .zip(items)
            .map(|(index, item)| (item.id.as_str(), index))
            .collect();
        let mut indices = [const { Vec::new() }; 3];
        for (out, ids) in indices.iter_mut().zip(self.parts()) {
            for id in ids {
                let position = positions.get(id.as_str()).ok_or_else(|| {
                    Error::data(format!(
                        "the split `{}` speaks of `{id}`, which the dataset does not hold",
                        self.name
                    ))
                })?;
                out.push(*position);
            }
        }
        Ok(indices)
    }

    fn parts(&self) -> [&Vec<String>; 3] {
        [&self.train, &self.validation, &self.test]
    }
}

/// Compares as a person would: runs of digits by their number, everything else by character.
/// Strings that differ only in leading zeros are told apart at the end, so the order is total.
pub fn natural_cmp(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (x, y) = match (left.chars().next(), right.chars().next()) {
            (Some(x), Some(y)) => (x, y),
            (None, None) => return a.cmp(b),
            (x, y) => return x.is_some().cmp(&y.is_some()),
        };
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (p, q) = (take_digits(&mut left), take_digits(&mut right));
            // Without leading zeros, the longer number is the larger; no number is too long.
            p.len().cmp(&q.len()).then_with(|| p.cmp(q))
        } else {
            left = &left[x.len_utf8()..];
            right = &right[y.len_utf8()..];
            x.cmp(&y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Cuts the digits off the front of `text` and answers them without leading zeros.
fn take_digits<'a>(text: &mut &'a str) -> &'a str {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    digits.trim_start_matches('0')
}

/// What goes to one side as a whole: a group, or a single sample.
type Unit<'a> = Vec<&'a str>;

/// The three lists while they are being filled.
#[derive(Default)]
struct Lists<'a> {
    train: Vec<&'a str>,
    validation: Vec<&'a str>,
    test: Vec<&'a str>,
}

/// Divides `items` as `options` say.
///
/// A validation part is carved from train unless the split names one; by whole groups where the
/// split keeps groups together. [`SplitRule::Parts`] with `validation = 0` puts the dataset's
/// validation part into train first (the literature's "train on both"), while `validation > 0`
/// keeps it as it is.
///
/// # Errors
/// When the split is unknown, an id occurs twice, the number of samples is not the split's, a part
/// would be empty, or the options or the file of ids are wrong.
pub fn split(info: &DatasetInfo, items: &[Item], options: &SplitOptions) -> Result<Split> {
    options.validate()?;
    let items = in_order(items)?;
    let (name, lists) = match &options.file {
        Some(file) => ("file".to_owned(), from_file(file, &items, options)?),
        None => {
            let plan = plan(info, &items, options)?;
            (plan.name.to_string(), from_plan(&plan, &items, options)?)
        }
    };
    finish(name, lists, options)
}

/// Sorts the listing and makes sure that an id names one sample.
fn in_order(items: &[Item]) -> Result<Vec<&Item>> {
    let mut sorted: Vec<&Item> = items.iter().collect();
    sorted.sort_by(|a, b| natural_cmp(&a.id, &b.id));
    match sorted.windows(2).find(|pair| pair[0].id == pair[1].id) {
        Some(pair) => Err(Error::data(format!(
            "the id `{}` occurs twice in the dataset",
            pair[0].id
        ))),
        None => Ok(sorted),
    }
}

/// The named split that the options mean, sizes filled in for the generic ones.
fn plan(info: &DatasetInfo, items: &[&Item], options: &SplitOptions) -> Result<NamedSplit> {
    let name = match (&options.name, info.splits.first()) {
        (Some(name), _) => name.as_str(),
        (None, Some(first)) => return Ok(first.clone()),
        (None, None) if items.iter().all(|item| !item.part.is_empty()) => "parts",
        (None, None) if items.iter().all(|item| !item.group.is_empty()) => "grouped",
        (None, None) => "random",
    };
    if let Some(named) = info.splits.iter().find(|named| named.name.as_str() == name) {
        return Ok(named.clone());
    }
    let rule = match name {
        "random" => SplitRule::Shuffled,
        "grouped" => SplitRule::Grouped,
        "parts" => SplitRule::Parts,
        _ => return Err(unknown(info, name)),
    };
    let of_part = |part: &str| {
        items
            .iter()
            .filter(|item| item.part.as_str() == part)
            .count()
    };
    let [train, validation, test] = match rule {
        SplitRule::Parts => PARTS.map(of_part),
        _ => {
            let test = share(items.len(), options.test);
            [items.len() - test, 0, test]
        }
    };
    Ok(NamedSplit {
        name: name.into(),
        rule,
        train: train as u32,
        validation: validation as u32,
        test: test as u32,
    })
}

fn unknown(info: &DatasetInfo, name: &str) -> Error {
    let own = info.splits.iter().map(|named| named.name.as_str());
    let offered: Vec<String> = own.chain(GENERIC).map(|name| format!("`{name}`")).collect();
    Error::config(format!(
        "{} has no split `{name}`, expected one of {}",
        info.name,
        offered.join(", ")
    ))
    .at("split.use")
}

/// `fraction` of `count`, rounded, but at least one if any is wanted and never all.
fn share(count: usize, fraction: f64) -> usize {
    let wanted = (count as f64 * fraction).round() as usize;
    wanted
        .max(usize::from(fraction > 0.0))
        .min(count.saturating_sub(1))
}

fn from_plan<'a>(
    plan: &NamedSplit,
    items: &[&'a Item],
    options: &SplitOptions,
) -> Result<Lists<'a>> {
    if plan.rule == SplitRule::Parts {
        return from_parts(plan, items, options);
    }
    let [_, validation, test] = sizes(plan, items.len(), options)?;
    let mut units = if plan.rule == SplitRule::Grouped {
        groups(plan, items)?
    } else {
        items.iter().map(|item| vec![item.id.as_str()]).collect()
    };
    shuffle(&mut units, options.seed, &plan.name);
    let test = take(&mut units, test, 2);
    let left: usize = units.iter().map(Vec::len).sum();
    let validation = if validation > 0 {
        validation
    } else {
        share(left, options.validation)
    };
    Ok(Lists {
        validation: take(&mut units, validation, 1),
        train: units.concat(),
        test,
    })
}

/// The sizes of `plan`, scaled to `present` samples where the user allows that.
fn sizes(plan: &NamedSplit, present: usize, options: &SplitOptions) -> Result<[usize; 3]> {
    let sizes = [plan.train, plan.validation, plan.test].map(|size| size as usize);
    let total: usize = sizes.iter().sum();
    if present == total {
        return Ok(sizes);
    }
    if !options.allow_partial {
        return Err(wrong_count(plan, total, present));
    }
    let [_, validation, test] = sizes.map(|size| share(present, size as f64 / total.max(1) as f64));
    Ok([present.saturating_sub(validation + test), validation, test])
}

fn wrong_count(
    plan: &NamedSplit,
    wanted: impl std::fmt::Display,
    present: impl std::fmt::Display,
) -> Error {
    Error::config(format!(
        "the split `{}` divides {wanted} samples, but {present} are present; \
         `split.allow_partial = true` makes do with those",
        plan.name
    ))
    .at("split.use")
}

/// One unit for each group, in natural order of the groups' names.
fn groups<'a>(plan: &NamedSplit, items: &[&'a Item]) -> Result<Vec<Unit<'a>>> {
    if let Some(item) = items.iter().find(|item| item.group.is_empty()) {
        return Err(Error::config(format!(
            "the split `{}` keeps groups together, but the sample `{}` belongs to none",
            plan.name, item.id
        ))
        .at("split.use"));
    }
    let units = by_group(items);
    if units.len() < PARTS.len() {
        return Err(Error::config(format!(
            "the split `{}` needs a group for each of train, validation and test, \
             but the dataset has {} in all",
            plan.name,
            units.len()
        ))
        .at("split.use"));
    }
    Ok(units)
}

fn by_group<'a>(items: &[&'a Item]) -> Vec<Unit<'a>> {
    let mut groups: BTreeMap<&str, Unit<'a>> = BTreeMap::new();
    for item in items {
        groups.entry(&item.group).or_default().push(&item.id);
    }
    let mut groups: Vec<(&str, Unit<'a>)> = groups.into_iter().collect();
    groups.sort_by(|(a, _), (b, _)| natural_cmp(a, b));
    groups.into_iter().map(|(_, unit)| unit).collect()
}

/// Fisher and Yates' shuffle, spelled out because the lists it gives must outlive the versions of
/// libraries. The high half of the product scales 64 random bits to an index; its bias is below
/// 2^-32 for any dataset that fits on a disk.
fn shuffle(units: &mut [Unit<'_>], seed: u64, name: &str) {
    let mut rng = rng::stream(seed, &format!("split/{name}"), 0);
    for last in (1..units.len()).rev() {
        let scaled = u128::from(rng.next_u64()) * (last as u128 + 1);
        units.swap(last, (scaled >> 64) as usize);
    }
}

/// Takes units from the front as long as each brings the sum nearer to `aim`, leaving at least
/// `keep` of them; takes the smallest one if even that would be too large.
fn take<'a>(units: &mut Vec<Unit<'a>>, aim: usize, keep: usize) -> Vec<&'a str> {
    let mut spare = units.len().saturating_sub(keep);
    if aim == 0 || spare == 0 {
        return Vec::new();
    }
    let mut taken = Vec::new();
    units.retain(|unit| {
        let nearer = (taken.len() + unit.len()).abs_diff(aim) < taken.len().abs_diff(aim);
        let take = nearer && spare > 0;
        if take {
            spare -= 1;
            taken.extend_from_slice(unit);
        }
        !take
    });
    if taken.is_empty() {
        let smallest = (0..units.len()).min_by_key(|&index| units[index].len());
        taken.extend(
            smallest
                .map(|index| units.remove(index))
                .unwrap_or_default(),
        );
    }
    taken
}

/// As the dataset's own parts say.
fn from_parts<'a>(
    plan: &NamedSplit,
    items: &[&'a Item],
    options: &SplitOptions,
) -> Result<Lists<'a>> {
    let mut parts: [Vec<&'a Item>; 3] = Default::default();
    for item in items {
        let Some(part) = PARTS.iter().position(|part| *part == item.part.as_str()) else {
            return Err(Error::config(format!(
                "the split `{}` goes by the dataset's own parts, but the sample `{}` belongs to \
                 `{}`, expected `train`, `validation` or `test`",
                plan.name, item.id, item.part
            ))
            .at("split.use"));
        };
        parts[part].push(item);
    }
    let [mut train, mut validation, test] = parts;
    if plan.validation == 0 {
        train.append(&mut validation);
        train.sort_by(|a, b| natural_cmp(&a.id, &b.id));
    }
    let wanted = [plan.train, plan.validation, plan.test].map(|size| size as usize);
    let present = [train.len(), validation.len(), test.len()];
    if wanted != present && !options.allow_partial {
        let list = |counts: [usize; 3]| counts.map(|count| count.to_string()).join(" + ");
        return Err(wrong_count(plan, list(wanted), list(present)));
    }
    let ids = |items: &[&'a Item]| items.iter().map(|item| item.id.as_str()).collect();
    let mut lists = Lists {
        train: ids(&train),
        validation: ids(&validation),
        test: ids(&test),
    };
    if validation.is_empty() {
        lists.carve(&train, &plan.name, options);
    }
    Ok(lists)
}

impl<'a> Lists<'a> {
    /// Moves a share of `train` to validation, by whole groups if its samples belong to several.
    fn carve(&mut self, train: &[&'a Item], name: &str, options: &SplitOptions) {
        let grouped = train.iter().all(|item| !item.group.is_empty());
        let mut units = if grouped { by_group(train) } else { Vec::new() };
        if units.len() < 2 {
            units = train.iter().map(|item| vec![item.id.as_str()]).collect();
        }
        shuffle(&mut units, options.seed, name);
        self.validation = take(&mut units, share(train.len(), options.validation), 1);
        self.train = units.concat();
    }
}

/// The user's lists of ids; what [`Split`] writes can be read again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdFile {
    #[serde(default, rename = "name")]
    _name: String,
    train: Vec<String>,
    #[serde(default)]
    validation: Vec<String>,
    test: Vec<String>,
}

fn from_file<'a>(file: &Path, items: &[&'a Item], options: &SplitOptions) -> Result<Lists<'a>> {
    let shown = file.display();
    let text = read_text(file, MAX_TEXT)
        .or_error(ErrorKind::Data, || format!("cannot read `{shown}`"))
        .map_err(|error| error.at("split.file"))?;
    let listed: IdFile = serde_json::from_str(&text)
        .or_error(ErrorKind::Data, || {
            format!("`{shown}` does not list ids as train, validation and test")
        })
        .map_err(|error| error.at("split.file"))?;
    let known: HashMap<&str, &'a Item> =
        items.iter().map(|item| (item.id.as_str(), *item)).collect();
    // A list made on another file system may hold the same names with accents apart.
    let by_form: HashMap<String, &'a Item> = items
        .iter()
        .map(|item| (composed(&item.id), *item))
        .collect();
    let mut seen = HashSet::new();
    let mut find = |ids: &[String]| -> Result<Vec<&'a Item>> {
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let wrong =
                |what| Error::data(format!("`{shown}` lists `{id}`{what}")).at("split.file");
            let item = known
                .get(id.as_str())
                .or_else(|| by_form.get(&composed(id)));
            let item = *item.ok_or_else(|| wrong(", which the dataset does not hold"))?;
            found.push(item);
            if !seen.insert(item.id.as_str()) {
                return Err(wrong(" more than once"));
            }
        }
        found.sort_by(|a, b| natural_cmp(&a.id, &b.id));
        Ok(found)
    };
    let (train, validation, test) = (
        find(&listed.train)?,
        find(&listed.validation)?,
        find(&listed.test)?,
    );
    let ids = |items: &[&'a Item]| items.iter().map(|item| item.id.as_str()).collect();
    let mut lists = Lists {
        train: ids(&train),
        validation: ids(&validation),
        test: ids(&test),
    };
    if validation.is_empty() {
        lists.carve(&train, "file", options);
    }
    Ok(lists)
}

/// Puts the lists into natural order; a part without samples is an error.
fn finish(name: String, mut lists: Lists<'_>, options: &SplitOptions) -> Result<Split> {
    thin(&mut lists.train, options);
    let counts = [&lists.train, &lists.validation, &lists.test].map(Vec::len);
    if let Some(part) = (0..PARTS.len()).find(|&part| counts[part] == 0) {
        let (part, total) = (PARTS[part], counts.iter().sum::<usize>());
        let message = format!("the split `{name}` of {total} samples leaves none for {part}");
        let zero = match part {
            "validation" => options.validation == 0.0,
            "test" => options.test == 0.0,
            _ => false,
        };
        return Err(match (zero, &options.file) {
            (true, _) => Error::config(message).at(format!("split.{part}")),
            (_, Some(_)) => Error::config(message).at("split.file"),
            _ => Error::config(message).at("split.use"),
        });
    }
    let sorted = |mut ids: Vec<&str>| -> Vec<String> {
        ids.sort_by(|a, b| natural_cmp(a, b));
        ids.into_iter().map(str::to_owned).collect()
    };
    Ok(Split {
        name,
        train: sorted(lists.train),
        validation: sorted(lists.validation),
        test: sorted(lists.test),
    })
}

/// Leaves the share of `ids` that is to be kept, at least one: those whose draws are lowest.
fn thin(ids: &mut Vec<&str>, options: &SplitOptions) {
    if options.keep < 1.0 {
        let count = share(ids.len(), options.keep).max(1);
        ids.sort_by_key(|id| rng::derive(options.seed, "keep", id));
        ids.truncate(count);
    }
}

#[cfg(test)]
mod tests;
