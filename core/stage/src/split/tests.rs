//! Tests of `split`.

#![allow(clippy::unwrap_used)]

use super::*;

fn info(splits: &[(&str, SplitRule, [u32; 3])]) -> DatasetInfo {
    let mut info = DatasetInfo::single_class("D", "polyp");
    for (name, rule, [train, validation, test]) in splits {
        info.splits.push(NamedSplit {
            name: (*name).into(),
            rule: *rule,
            train: *train,
            validation: *validation,
            test: *test,
        });
    }
    info
}

fn item(id: &str, group: &str, part: &str) -> Item {
    Item {
        group: group.into(),
        part: part.into(),
        ..Item::new(id)
    }
}

fn plain(count: usize) -> Vec<Item> {
    (1..=count).map(|i| Item::new(&i.to_string())).collect()
}

/// Groups of the given sizes: `g1` holds `g1-1`, `g1-2`, …
fn grouped(sizes: &[usize]) -> Vec<Item> {
    let groups = sizes.iter().enumerate();
    groups
        .flat_map(|(g, size)| {
            (1..=*size).map(move |i| item(&format!("g{}-{i}", g + 1), &format!("g{}", g + 1), ""))
        })
        .collect()
}

fn parts(train: usize, validation: usize, test: usize) -> Vec<Item> {
    [("train", train), ("validation", validation), ("test", test)]
        .into_iter()
        .flat_map(|(part, n)| (1..=n).map(move |i| item(&format!("{part}{i}"), "", part)))
        .collect()
}

fn using(name: &str) -> SplitOptions {
    SplitOptions {
        name: Some(name.into()),
        ..SplitOptions::default()
    }
}

fn counts(split: &Split) -> [usize; 3] {
    split.parts().map(Vec::len)
}

/// Every item in exactly one part, each part in natural order.
fn assert_divides(split: &Split, items: &[Item]) {
    for ids in split.parts() {
        assert!(ids.is_sorted_by(|a, b| natural_cmp(a, b) == Ordering::Less));
    }
    let mut all: Vec<&str> = split
        .parts()
        .into_iter()
        .flatten()
        .map(|s| s.as_str())
        .collect();
    let mut want: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
    all.sort_unstable();
    want.sort_unstable();
    assert_eq!(all, want);
}

fn assert_fails(result: Result<Split>, field: &str, words: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.field.as_str(), field, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}` not in: {error}");
    }
}

#[test]
fn numbers_compare_as_numbers() {
    let mut names = [
        "10", "a10b", "2", "a2b", "a02b", "1", "", "a", "b1", "a2", "é1",
    ];
    names.sort_by(|a, b| natural_cmp(a, b));
    assert_eq!(
        names,
        [
            "", "1", "2", "10", "a", "a2", "a02b", "a2b", "a10b", "b1", "é1"
        ]
    );
    let long = ["99999999999999999999999", "100000000000000000000000"];
    assert_eq!(natural_cmp(long[0], long[1]), Ordering::Less);
}

#[test]
fn the_order_of_the_listing_does_not_matter() {
    let info = info(&[("paper", SplitRule::Shuffled, [80, 0, 20])]);
    let mut items = plain(100);
    let first = split(&info, &items, &SplitOptions::default()).unwrap();
    items.reverse();
    items.swap(3, 71);
    let second = split(&info, &items, &SplitOptions::default()).unwrap();
    assert_eq!(first, second);
    assert_eq!(counts(&first), [72, 8, 20]);
    assert_divides(&first, &items);
}

#[test]
fn the_lists_are_fixed_forever() {
    let drawn = split(&info(&[]), &plain(10), &SplitOptions::default()).unwrap();
    assert_eq!(drawn.name, "random");
    assert_eq!(drawn.test, ["5", "6"]);
    assert_eq!(
        drawn.sha256(),
        "d5b247a4d1ace57dde2d5f276bdcaf4f454243820a9fbe3cd76ace34f5e453cb"
    );
}

#[test]
fn the_fingerprint_is_that_of_the_documented_text() {
    let split = Split {
        name: "any".into(),
        train: vec!["1".into(), "2".into()],
        validation: vec!["3".into()],
        test: vec!["4".into()],
    };
    // printf 'train 2\n1\n2\nvalidation 1\n3\ntest 1\n4\n' | sha256sum
    assert_eq!(
        split.sha256(),
        "fca824101dd41958799461f365c2a4f016df3ba913a6733f58f3c5623a2e8c41"
    );
}

#[test]
fn seed_and_name_shuffle_but_validation_leaves_test_alone() {
    let items = plain(200);
    let draw = |options: &SplitOptions| split(&info(&[]), &items, options).unwrap();
    let base = draw(&using("random"));
    let other_seed = draw(&SplitOptions {
        seed: 1,
        ..using("random")
    });
    let more_validation = draw(&SplitOptions {
        validation: 0.3,
        ..using("random")
    });
    assert_ne!(base.test, other_seed.test);
    assert_eq!(base.test, more_validation.test);
    assert_eq!(counts(&base), [144, 16, 40]);
    assert_eq!(counts(&more_validation), [112, 48, 40]);
}

#[test]
fn a_named_validation_part_is_taken_as_named() {
    let info = info(&[("sdseg", SplitRule::Shuffled, [80, 10, 10])]);
    let drawn = split(&info, &plain(100), &SplitOptions::default()).unwrap();
    assert_eq!(counts(&drawn), [80, 10, 10]);
}

#[test]
fn groups_never_straddle() {
    let sizes = [25, 25, 17, 11, 25, 23, 25, 26, 22, 6, 22, 25];
    let items = grouped(&sizes);
    let info = info(&[("sequence", SplitRule::Grouped, [202, 0, 50])]);
    for seed in 0..20 {
        let options = SplitOptions {
            seed,
            ..SplitOptions::default()
        };
        let drawn = split(&info, &items, &options).unwrap();
        assert_divides(&drawn, &items);
        let groups = drawn.parts().map(|ids| {
            let groups = ids.iter().map(|id| id.split('-').next().unwrap());
            groups.collect::<HashSet<_>>()
        });
        assert!(groups[0].is_disjoint(&groups[1]));
        assert!(groups[0].is_disjoint(&groups[2]));
        assert!(groups[1].is_disjoint(&groups[2]));
        assert!(drawn.test.len().abs_diff(50) <= 13, "{}", drawn.test.len());
    }
}

#[test]
fn a_group_larger_than_the_aim_is_taken_rather_than_none() {
    let options = SplitOptions {
        test: 0.05,
        ..using("grouped")
    };
    let drawn = split(&info(&[]), &grouped(&[40, 30, 20]), &options).unwrap();
    let mut sizes = counts(&drawn);
    sizes.sort_unstable();
    assert_eq!(sizes, [20, 30, 40]);
    assert_eq!(drawn.test.len(), 20);
}

#[test]
fn parts_keep_or_join_the_validation_part() {
    let info = info(&[
        ("paper", SplitRule::Parts, [80, 0, 40]),
        ("official", SplitRule::Parts, [40, 40, 40]),
    ]);
    let items = parts(40, 40, 40);
    let paper = split(&info, &items, &using("paper")).unwrap();
    assert_eq!(counts(&paper), [72, 8, 40]);
    assert!(paper.train.iter().any(|id| id.starts_with("validation")));
    assert!(paper.test.iter().all(|id| id.starts_with("test")));
    assert_divides(&paper, &items);
    let official = split(&info, &items, &using("official")).unwrap();
    assert_eq!(counts(&official), [40, 40, 40]);
    assert!(
        official
            .validation
            .iter()
            .all(|id| id.starts_with("validation"))
    );
    assert_fails(
        split(&info, &parts(40, 40, 39), &using("paper")),
        "split.use",
        &["80 + 0 + 40", "80 + 0 + 39", "split.allow_partial"],
    );
}

#[test]
fn parts_without_validation_have_it_carved_by_groups() {
    let mut items = grouped(&[5, 5, 5, 5]);
    for item in &mut items {
        item.part = if item.group.as_str() == "g4" {
            "test"
        } else {
            "train"
        }
        .into();
    }
    let drawn = split(&info(&[]), &items, &SplitOptions::default()).unwrap();
    assert_eq!(drawn.name, "parts");
    assert_eq!(counts(&drawn), [10, 5, 5]);
    let group = |id: &String| id[..2].to_owned();
    let validation: HashSet<_> = drawn.validation.iter().map(group).collect();
    assert_eq!(validation.len(), 1);
    assert!(
        drawn
            .train
            .iter()
            .map(group)
            .all(|g| !validation.contains(&g))
    );
}

#[test]
fn the_default_is_what_the_samples_allow() {
    let name = |info: &DatasetInfo, items: &[Item]| {
        split(info, items, &SplitOptions::default()).unwrap().name
    };
    let named = info(&[("own", SplitRule::Shuffled, [8, 0, 2])]);
    assert_eq!(name(&named, &plain(10)), "own");
    assert_eq!(name(&info(&[]), &parts(5, 5, 5)), "parts");
    assert_eq!(name(&info(&[]), &grouped(&[5, 5, 5])), "grouped");
    assert_eq!(name(&info(&[]), &plain(10)), "random");
}

#[test]
fn another_number_of_samples_needs_permission() {
    let info = info(&[("paper", SplitRule::Shuffled, [800, 0, 200])]);
    for present in [400, 2000] {
        let items = plain(present);
        assert_fails(
            split(&info, &items, &SplitOptions::default()),
            "split.use",
            &[
                "`paper`",
                "1000",
                &present.to_string(),
                "split.allow_partial",
            ],
        );
        let partial = SplitOptions {
            allow_partial: true,
            ..SplitOptions::default()
        };
        let drawn = split(&info, &items, &partial).unwrap();
        assert_eq!(drawn.test.len(), present / 5);
        assert_eq!(drawn.validation.len(), present * 8 / 100);
        assert_divides(&drawn, &items);
    }
}

#[test]
fn wrong_options_name_their_field() {
    let items = plain(10);
    let own = info(&[("own", SplitRule::Shuffled, [8, 0, 2])]);
    assert_fails(
        split(&own, &items, &using("paper")),
        "split.use",
        &["`own`", "`random`"],
    );
    assert_fails(
        split(&own, &items, &using("grouped")),
        "split.use",
        &["`1`"],
    );
    assert_fails(split(&own, &items, &using("parts")), "split.use", &["`1`"]);
    for bad in [-0.1, 1.0, f64::NAN] {
        let validation = SplitOptions {
            validation: bad,
            ..using("random")
        };
        assert_fails(split(&own, &items, &validation), "split.validation", &[]);
        let test = SplitOptions {
            test: bad,
            ..using("random")
        };
        assert_fails(split(&own, &items, &test), "split.test", &[]);
    }
    let none = SplitOptions {
        test: 0.0,
        ..using("random")
    };
    assert_fails(split(&own, &items, &none), "split.test", &["none for test"]);
    let none = SplitOptions {
        validation: 0.0,
        ..using("random")
    };
    assert_fails(
        split(&own, &items, &none),
        "split.validation",
        &["none for validation"],
    );
    let both = SplitOptions {
        file: Some("x.json".into()),
        ..using("own")
    };
    assert_fails(split(&own, &items, &both), "split.file", &["own"]);
    assert_fails(
        split(&own, &grouped(&[4, 4]), &using("grouped")),
        "split.use",
        &["has 2 in all"],
    );
}

#[test]
fn too_few_samples_are_an_error_not_a_panic() {
    for count in 0..3 {
        for name in ["random", "grouped", "parts"] {
            split(&info(&[]), &plain(count), &using(name)).unwrap_err();
        }
    }
    assert_eq!(
        counts(&split(&info(&[]), &plain(3), &using("random")).unwrap()),
        [1, 1, 1]
    );
    let partial = SplitOptions {
        allow_partial: true,
        ..SplitOptions::default()
    };
    let named = info(&[("sdseg", SplitRule::Shuffled, [80, 10, 10])]);
    split(&named, &plain(2), &partial).unwrap_err();
    assert_eq!(
        counts(&split(&named, &plain(3), &partial).unwrap()),
        [1, 1, 1]
    );
}

#[test]
fn an_id_names_one_sample() {
    let items = [Item::new("a"), Item::new("b"), Item::new("a")];
    assert_fails(split(&info(&[]), &items, &using("random")), "", &["`a`"]);
}

#[test]
fn a_file_decides_if_it_lists_known_ids_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("split.json");
    let run = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let options = SplitOptions {
            file: Some(file.clone()),
            ..SplitOptions::default()
        };
        split(&info(&[]), &plain(12), &options)
    };
    let whole = run(r#"{"train": ["10", "2"], "validation": ["3"], "test": ["1"]}"#).unwrap();
    assert_eq!(whole.name, "file");
    assert_eq!(whole.train, ["2", "10"]);
    assert_eq!(run(&serde_json::to_string(&whole).unwrap()).unwrap(), whole);
    let carved = run(r#"{"train": ["1", "2", "3", "4"], "test": ["5"]}"#).unwrap();
    assert_eq!(counts(&carved), [3, 1, 1]);
    let fails = |text: &str, words: &[&str]| assert_fails(run(text), "split.file", words);
    fails(
        r#"{"train": ["1", "99"], "test": ["5"]}"#,
        &["split.json", "`99`"],
    );
    fails(
        r#"{"train": ["1", "2", "1"], "test": ["5"]}"#,
        &["`1` more than once"],
    );
    fails(
        r#"{"train": ["1", "2"], "test": ["2"]}"#,
        &["`2` more than once"],
    );
    fails(r#"{"train": ["1", "2"], "test": []}"#, &["none for test"]);
    fails(r#"{"train": ["1"], "tets": ["2"]}"#, &["tets"]);
    fails("", &["split.json"]);
    std::fs::remove_file(&file).unwrap();
    let options = SplitOptions {
        file: Some(file.clone()),
        ..SplitOptions::default()
    };
    assert_fails(
        split(&info(&[]), &plain(3), &options),
        "split.file",
        &["split.json"],
    );
}

#[test]
fn indices_follow_the_listing() {
    let split = Split {
        name: "x".into(),
        train: vec!["1".into(), "3".into()],
        validation: vec!["2".into()],
        test: vec!["4".into()],
    };
    let items = ["4", "3", "2", "1"].map(Item::new);
    assert_eq!(
        split.indices(&items).unwrap(),
        [vec![3, 1], vec![2], vec![0]]
    );
    let error = split.indices(&items[1..]).unwrap_err();
    assert!(error.to_string().contains("`4`"), "{error}");
}

#[test]
fn options_read_from_a_manifest() {
    let options: SplitOptions =
        serde_json::from_str(r#"{"use": "paper", "allow_partial": true}"#).unwrap();
    assert_eq!(options.name.as_deref(), Some("paper"));
    assert!((options.validation - 0.1).abs() < 1e-12 && options.allow_partial);
    serde_json::from_str::<SplitOptions>(r#"{"name": "paper"}"#).unwrap_err();
}

#[test]
fn a_share_of_train_is_kept_and_the_rest_stays_whole() {
    let (info, items) = (info(&[]), plain(100));
    let with = |keep| {
        let options = SplitOptions {
            keep,
            ..using("random")
        };
        split(&info, &items, &options).unwrap()
    };
    let (all, half, tenth) = (with(1.0), with(0.5), with(0.1));
    assert_eq!(counts(&all), [72, 8, 20]);
    assert_eq!(counts(&half), [36, 8, 20]);
    assert_eq!(counts(&tenth), [7, 8, 20]);
    assert!(tenth.train.iter().all(|id| half.train.contains(id)));
    assert!(half.train.iter().all(|id| all.train.contains(id)));
    assert_eq!((&half.validation, &half.test), (&all.validation, &all.test));
    let indices = tenth.indices(&items).unwrap();
    assert_eq!(indices[0].len(), 7);
    for keep in [0.0, 1.5, f64::NAN] {
        let options = SplitOptions {
            keep,
            ..SplitOptions::default()
        };
        assert_eq!(options.validate().unwrap_err().field, "split.keep");
    }
}

#[test]
fn mutated_files_of_ids_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("split.json");
    let items: Vec<Item> = (0..9).map(|i| Item::new(&format!("s{i}"))).collect();
    let info = DatasetInfo::single_class("D", "polyp");
    let options = SplitOptions {
        file: Some(path.clone()),
        ..SplitOptions::default()
    };
    let seeds = [
        br#"{"train": ["s0", "s1", "s2"], "validation": ["s3"], "test": ["s4", "s5"]}"#.to_vec(),
        br#"{"name": "x", "train": ["s0", "s6", "s7", "s8"], "test": ["s1"]}"#.to_vec(),
    ];
    crate::mutate::each("splits", &seeds, 3000, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = split(&info, &items, &options) {
            assert!(error.to_string().contains("split"), "{error}");
        }
    });
}

#[test]
fn names_with_accents_apart_are_the_same_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("split.json");
    let items = ["caf\u{e9}", "b", "c", "d"].map(Item::new);
    // The list was made where accents are stored apart from their letters.
    let text = "{\"train\": [\"b\", \"cafe\u{301}\"], \"validation\": [\"c\"], \"test\": [\"d\"]}";
    std::fs::write(&path, text).unwrap();
    let options = SplitOptions {
        file: Some(path),
        ..SplitOptions::default()
    };
    let info = DatasetInfo::single_class("D", "polyp");
    let found = split(&info, &items, &options).unwrap();
    assert_eq!(found.train, ["b", "caf\u{e9}"]);
}
