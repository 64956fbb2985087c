//! Tests of what the values of a mask mean.

#![allow(clippy::unwrap_used)]

use super::*;

fn found(width: u32, values: &[u8]) -> MaskValues {
    let height = values.len() as u32 / width;
    MaskValues {
        values: Mask::new(width, height, values.to_vec()).unwrap(),
        lossy: false,
        indexed: false,
    }
}

/// A square of `side` pixels of `value` in the middle of 20x20 zeros.
fn square(side: usize, value: u8) -> Vec<u8> {
    let inside = |i: usize| (10 - side / 2..10 - side / 2 + side).contains(&i);
    (0..400)
        .map(|i| {
            if inside(i % 20) && inside(i / 20) {
                value
            } else {
                0
            }
        })
        .collect()
}

fn auto(values: &[u8], lossy: bool) -> Result<Vec<u8>, String> {
    let width = if values.len() == 400 {
        20
    } else {
        values.len() as u32
    };
    let found = MaskValues {
        lossy,
        ..found(width, values)
    };
    let mask = MaskRule::Auto { label: 1 }.apply(found);
    mask.map(|m| m.labels().to_vec())
        .map_err(|fault| fault.message)
}

#[test]
fn values_decide_where_nothing_was_stated() {
    for (values, labels) in [
        (&[0, 0, 0][..], [0, 0, 0]),
        (&[0, 1, 1], [0, 1, 1]),
        (&[1, 1, 1], [1, 1, 1]),
        (&[0, 255, 255], [0, 1, 1]),
        (&[255, 255, 255], [1, 1, 1]),
    ] {
        assert_eq!(auto(values, false).unwrap(), labels, "{values:?}");
    }
    let grey = square(12, 240)
        .iter()
        .map(|&v| v.max(10))
        .collect::<Vec<_>>();
    assert_eq!(auto(&grey, false).unwrap(), square(12, 1));
    // Soft edges.
    assert_eq!(
        auto(&[0, 40, 127, 128, 200, 255], false).unwrap(),
        [0, 0, 0, 1, 1, 1]
    );
    // JPEG: stray values, and black that came back as 2.
    assert_eq!(
        auto(&[0, 3, 1, 250, 254, 255], true).unwrap(),
        [0, 0, 0, 1, 1, 1]
    );
    assert_eq!(auto(&[2, 2, 2], true).unwrap(), [0, 0, 0]);
}

#[test]
fn values_that_decide_nothing_are_named() {
    for (values, words) in [
        (
            &[0, 2, 2][..],
            "has the values 2 besides 0; expected 0 and 255",
        ),
        (&[0, 1, 2], "has the values 1, 2 besides 0"),
        (&[0, 38, 75], "has the values 38, 75 besides 0"),
        (&[0, 1, 255], "has the values 1, 255 besides 0"),
        (&[0, 128, 255], "has the values 128, 255 besides 0"),
        (&[1, 2, 3], "has the values 1, 2, 3 besides 0"),
        (&[0, 200, 200], "has the values 200 besides 0"),
        (&[127, 127, 127], "has the values 127 besides 0"),
    ] {
        let message = auto(values, false).unwrap_err();
        assert!(message.contains(words), "{values:?}: {message}");
    }
    let jpeg = auto(&[0, 1, 1, 2], true).unwrap_err();
    assert!(jpeg.contains("has the values 1, 2 besides 0"), "{jpeg}");
}

#[test]
fn areas_of_a_value_between_black_and_white_are_classes() {
    let mut two = square(12, 255);
    for (value, rim) in two.iter_mut().zip(square(6, 1)) {
        *value = if rim > 0 { 128 } else { *value };
    }
    // Some soft pixels more make no mask of it.
    two[0] = 60;
    two[19] = 70;
    let message = auto(&two, false).unwrap_err();
    assert!(
        message.contains("has the value 128 over whole areas"),
        "{message}"
    );
    assert!(auto(&two, true).is_err());
    // Values near white are noise of an earlier JPEG file where there are many, else a class.
    let mut near = square(12, 255);
    for (value, inner) in near.iter_mut().zip(square(6, 1)) {
        *value = if inner > 0 { 253 } else { *value };
    }
    near[0] = 9;
    assert!(auto(&near, false).is_err());
    near[..20].copy_from_slice(&(230..250).collect::<Vec<u8>>());
    assert_eq!(auto(&near, false).unwrap()[10 * 20 + 10], 1);
}

#[test]
fn rules_turn_values_into_labels() {
    let values = [0, 127, 128, 255];
    let above = MaskRule::Above {
        threshold: 127,
        label: 1,
    };
    assert_eq!(
        above.apply(found(4, &values)).unwrap().labels(),
        [0, 0, 1, 1]
    );
    let map = MaskRule::Values([(0, 2), (127, 9), (128, 1), (255, 0)].into());
    assert_eq!(map.apply(found(4, &values)).unwrap().labels(), [2, 9, 1, 0]);
}

#[test]
fn an_unexpected_value_is_located() {
    let rule = MaskRule::Values([(0, 0), (255, 1)].into());
    let fault = rule.apply(found(3, &[0, 0, 255, 255, 7, 9])).unwrap_err();
    assert_eq!(
        fault.at(Path::new("m.png")).to_string(),
        "mask `m.png` has the value 7 at pixel (1, 1), expected one of 0, 255"
    );
    assert_eq!(fault.values, [7, 9, 255]);
    let indexed = MaskValues {
        indexed: true,
        ..found(1, &[1])
    };
    let fault = rule.apply(indexed).unwrap_err();
    assert!(
        fault.message.ends_with("0, 255 (indices of a palette)"),
        "{fault:?}"
    );
}

#[test]
fn a_threshold_above_all_labels_is_refused() {
    let rule = MaskRule::Above {
        threshold: 127,
        label: 1,
    };
    let fault = rule.apply(found(3, &[0, 1, 2])).unwrap_err();
    assert!(
        fault
            .message
            .contains("has the values 1, 2 besides 0, none of them above the threshold 127"),
        "{fault:?}"
    );
    // Noise of a healthy JPEG mask, or the faint edge of a lesion that was scaled away.
    let lossy = MaskValues {
        lossy: true,
        ..found(3, &[0, 1, 2])
    };
    assert_eq!(rule.apply(lossy).unwrap().labels(), [0; 3]);
    assert_eq!(
        rule.apply(found(5, &[1, 2, 3, 4, 5])).unwrap().labels(),
        [0; 5]
    );
    assert_eq!(rule.apply(found(2, &[0, 0])).unwrap().labels(), [0; 2]);
}

#[test]
fn colours_and_transparency_have_one_value() {
    let path = Path::new("m.png");
    let one = |bytes: &[u8]| one_channel(bytes, false, path);
    assert_eq!(one(&[7, 7, 7, 0, 0, 0]).unwrap(), [7, 0]);
    assert_eq!(one(&[255, 0, 0, 0, 0, 0]).unwrap(), [255, 0]);
    assert_eq!(
        one(&[90, 90, 0, 0, 0, 0, 255, 255, 0]).unwrap(),
        [90, 0, 255]
    );
    assert_eq!(one(&[128, 64, 3, 0, 0, 0]).unwrap(), [255, 0]);
    for several in [
        &[255, 0, 0, 0, 255, 0][..],
        &[255, 0, 0, 255, 255, 255],
        &[128, 64, 3, 127, 64, 3],
    ] {
        let error = one(several).unwrap_err().to_string();
        assert!(
            error.contains("mask `m.png` has several colours"),
            "{error}"
        );
    }
    // A JPEG file of a grey mask may have a tint.
    assert_eq!(
        one_channel(&[250, 255, 251, 0, 3, 0], true, path).unwrap(),
        [253, 2]
    );

    let alpha = |bytes: &[u8]| with_alpha(bytes, 3, false, path);
    // Opaque: alpha says nothing.
    assert_eq!(alpha(&[9, 9, 9, 255, 0, 0, 0, 255]).unwrap(), [9, 0]);
    // Black paint, and white paper that is not there.
    assert_eq!(alpha(&[0, 0, 0, 255, 0, 0, 0, 0]).unwrap(), [255, 0]);
    assert_eq!(
        alpha(&[255, 0, 0, 200, 255, 255, 255, 0]).unwrap(),
        [200, 0]
    );
    let error = alpha(&[255, 0, 0, 200, 255, 255, 255, 100])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("both different colours and transparency"),
        "{error}"
    );
    assert_eq!(
        with_alpha(&[7, 255, 0, 255], 1, false, path).unwrap(),
        [7, 0]
    );
    assert_eq!(
        with_alpha(&[0, 255, 0, 0], 1, false, path).unwrap(),
        [255, 0]
    );
}

#[test]
fn many_values_are_shortened() {
    assert_eq!(list_values(&[]), "none");
    assert_eq!(list_values(&[1, 2]), "1, 2");
    let many: Vec<u8> = (1..=20).collect();
    assert_eq!(list_values(&many), "1, 2, 3, 4, 5, 6 … 20");
}
