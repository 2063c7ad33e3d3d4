//! What holds for every merge.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::vcon::VconId;
use crate::vcon::properties::{damaged_example, document};

fn vcon(text: &str) -> Vcon {
    Vcon::parse(VconId::random(), text.to_owned()).unwrap()
}

fn merged(base: &str, ours: &str, theirs: &str) -> Merged {
    merge(base, &vcon(ours), theirs.to_owned()).unwrap()
}

/// The value of a document.
#[derive(Debug, PartialEq)]
struct Whole {
    members: HashMap<String, Digest>,
    /// Whether each list is there, and its elements.
    lists: [(bool, Vec<Digest>); 4],
}

fn value(vcon: &Vcon) -> Whole {
    let lists = LISTS.map(|name| {
        let list = List::of(name, &vcon.members);
        (list.is_present, list.values())
    });
    let members = plain_values(&vcon.members).into_iter();
    let members = members.map(|(name, value)| (name.to_owned(), value));
    Whole {
        members: members.collect(),
        lists,
    }
}

/// A document of few different members and elements, so that two of them have much in common.
fn similar() -> impl Strategy<Value = String> {
    let element = prop_oneof![
        (0..4u32).prop_map(|n| json!(n)),
        (0..3u32, 0..3u32).prop_map(|(kind, n)| json!({"type": kind, "n": n})),
        (0..3u32, 0..3u32).prop_map(|(id, n)| json!({"id": id, "n": n})),
        (0..4u32, 0..4u32).prop_map(|(place, n)| json!({"dialog": place, "parties": [place, n]})),
        prop::collection::vec(0..5u32, 0..4)
            .prop_map(|tags| json!({"purpose": "tags", "body": tags})),
    ];
    let lists = prop::collection::vec(
        prop::option::weighted(0.8, prop::collection::vec(element, 0..6)),
        LISTS.len(),
    );
    let members = prop::collection::btree_map("subject|updated_at|x|group", 0..3u32, 0..4);
    (members, lists).prop_map(|(members, lists)| {
        let mut document = json!(members);
        for (name, list) in LISTS.into_iter().zip(lists) {
            if let Some(list) = list {
                document[name] = json!(list);
            }
        }
        document.to_string()
    })
}

fn any_document() -> impl Strategy<Value = String> {
    prop_oneof![document(), similar()]
}

/// Elements that are known by their ids, each in one of few versions, in any order.
fn known() -> impl Strategy<Value = Vec<(u32, u32)>> {
    let elements = prop::collection::btree_map(0..12u32, 0..3u32, 0..9);
    let elements = elements.prop_map(|elements| elements.into_iter().collect::<Vec<_>>());
    prop_oneof![elements.clone().prop_shuffle(), elements]
}

/// The merge of such elements, as the words of the module have it.
fn model(
    base: &[(u32, u32)],
    ours: &[(u32, u32)],
    theirs: &[(u32, u32)],
) -> (Vec<(u32, u32)>, Vec<usize>) {
    if base == theirs {
        return (ours.to_vec(), Vec::new());
    }
    let find = |list: &[(u32, u32)], id| list.iter().find(|(other, _)| *other == id).copied();
    let (mut list, mut conflicts) = (Vec::new(), Vec::new());
    for &element in theirs {
        let (before, our) = (find(base, element.0), find(ours, element.0));
        match (before, our) {
            (Some(before), None) if before == element => {}
            (Some(before), Some(our)) if our != before => {
                if element != before && element != our {
                    conflicts.push(list.len());
                }
                list.push(our);
            }
            _ => list.push(element),
        }
    }
    for &element in ours {
        let (before, their) = (find(base, element.0), find(theirs, element.0));
        let is_new = before.is_none() && their != Some(element);
        let is_changed = their.is_none() && before.is_some_and(|before| before != element);
        if is_new || is_changed {
            list.push(element);
        }
    }
    (list, conflicts)
}

fn list_of(elements: &[(u32, u32)]) -> Value {
    elements
        .iter()
        .map(|(id, version)| json!({"id": id, "version": version}))
        .collect()
}

/// The tags of a document with these.
fn tagged(tags: Option<&Vec<u32>>) -> String {
    match tags {
        Some(tags) => json!({"attachments": [{"purpose": "tags", "body": tags}]}).to_string(),
        None => json!({"attachments": []}).to_string(),
    }
}

/// Which dialogs one side has, as their names, and analyses of them.
fn side_of(
    base: &[u32],
    removed: &[bool],
    added: &[u32],
    analysed: &[prop::sample::Index],
    name: &str,
) -> Value {
    let kept = base.iter().zip(removed).filter(|(_, removed)| !**removed);
    let dialogs: Vec<u32> = kept
        .map(|(id, _)| *id)
        .chain(added.iter().copied())
        .collect();
    let analyses = analysed
        .iter()
        .filter(|_| !dialogs.is_empty())
        .map(|index| {
            let place = index.index(dialogs.len());
            json!({"type": name, "about": dialogs[place], "dialog": [place]})
        });
    let analyses: Vec<Value> = analyses.collect();
    let dialogs: Vec<Value> = dialogs.iter().map(|id| json!({"id": id})).collect();
    json!({"dialog": dialogs, "analysis": analyses})
}

proptest! {
    #[test]
    fn where_one_side_did_nothing_the_other_side_stands(x in any_document(), y in any_document()) {
        let theirs = merged(&x, &x, &y);
        prop_assert_eq!(value(&theirs.vcon), value(&vcon(&y)));
        prop_assert!(theirs.conflicts.is_empty() && !theirs.vcon.is_changed());

        let ours = merged(&x, &y, &x);
        prop_assert_eq!(value(&ours.vcon), value(&vcon(&y)));
        prop_assert!(ours.conflicts.is_empty());
        prop_assert_eq!(ours.vcon.is_changed(), value(&vcon(&x)) != value(&vcon(&y)));
    }

    #[test]
    fn where_both_sides_did_the_same_it_stands(x in any_document(), y in any_document()) {
        let both = merged(&x, &y, &y);
        prop_assert!(!both.vcon.is_changed());
        prop_assert_eq!(value(&both.vcon), value(&vcon(&y)));
        prop_assert_eq!(both.conflicts, Vec::<String>::new());
    }

    #[test]
    fn it_settles_and_is_a_vcon(x in any_document(), y in any_document(), z in any_document()) {
        let mut first = merged(&x, &y, &z);
        prop_assert_eq!(first.vcon.is_changed(), value(&first.vcon) != value(&vcon(&z)));
        let text = first.vcon.to_json();
        prop_assert_eq!(value(&vcon(&text)), value(&first.vcon));
        let again = merged(&z, &text, &z);
        prop_assert_eq!(value(&again.vcon), value(&first.vcon));
        let again = merged(&text, &text, &text);
        prop_assert!(!again.vcon.is_changed() && again.conflicts.is_empty());
    }

    #[test]
    fn nothing_makes_it_panic(bytes in prop::collection::vec(damaged_example(), 3), text in any::<String>()) {
        let texts: Vec<String> = bytes.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
        let valid = |text: &&String| Vcon::parse(VconId::random(), (*text).clone()).is_ok();
        for ours in texts.iter().filter(valid) {
            for base in &texts {
                for theirs in texts.iter().chain([&text]) {
                    if let Ok(mut merged) = merge(base, &vcon(ours), theirs.clone()) {
                        merged.vcon.to_json();
                    }
                }
            }
        }
    }

    #[test]
    fn members_are_chosen_one_by_one(
        base in prop::collection::btree_map("[a-e]", 0..3u32, 0..5),
        ours in prop::collection::btree_map("[a-e]", 0..3u32, 0..5),
        theirs in prop::collection::btree_map("[a-e]", 0..3u32, 0..5),
    ) {
        let texts = [&base, &ours, &theirs].map(|side| json!(side).to_string());
        let mut merged = merged(&texts[0], &texts[1], &texts[2]);
        let document: Value = serde_json::from_str(&merged.vcon.to_json()).unwrap();
        for name in ["a", "b", "c", "d", "e"] {
            let [base, ours, theirs] = [&base, &ours, &theirs].map(|side| side.get(name));
            let expected = if ours == base { theirs } else { ours };
            prop_assert_eq!(document.get(name).cloned(), expected.map(|n| json!(n)));
            let conflict = ours != base && theirs != base && ours != theirs;
            prop_assert_eq!(merged.conflicts.iter().any(|it| it == name), conflict);
        }
    }

    #[test]
    fn lists_are_merged_as_the_words_say(base in known(), ours in known(), theirs in known()) {
        let (expected, conflicts) = model(&base, &ours, &theirs);
        for name in LISTS {
            let texts = [&base, &ours, &theirs].map(|list| json!({name: list_of(list)}).to_string());
            let mut merged = merged(&texts[0], &texts[1], &texts[2]);
            let document: Value = serde_json::from_str(&merged.vcon.to_json()).unwrap();
            prop_assert_eq!(&document[name], &list_of(&expected));
            let named: Vec<String> = conflicts.iter().map(|place| format!("{name}[{place}]")).collect();
            prop_assert_eq!(merged.conflicts, named);
        }
    }

    #[test]
    fn nothing_that_a_side_added_is_missing(
        base in prop::collection::vec(0..5u32, 0..6),
        ours in prop::collection::vec(0..9u32, 0..8),
        theirs in prop::collection::vec(0..9u32, 0..8),
    ) {
        for name in LISTS {
            let texts = [&base, &ours, &theirs].map(|list| json!({name: list}).to_string());
            let mut merged = merged(&texts[0], &texts[1], &texts[2]);
            let document: Value = serde_json::from_str(&merged.vcon.to_json()).unwrap();
            let result: Vec<u32> = serde_json::from_value(document[name].clone()).unwrap();
            let count = |list: &[u32], n: u32| list.iter().filter(|it| **it == n).count();
            let missing = |side: &[u32]| -> usize {
                let added = |n| count(side, n).saturating_sub(count(&base, n));
                (0..9).map(|n| added(n).saturating_sub(count(&result, n))).sum()
            };
            prop_assert_eq!(missing(&ours), 0);
            // The chain's value stands, and that is named.
            prop_assert!(missing(&theirs) <= merged.conflicts.len());
            // And nothing is there that nobody has.
            for n in 0..9 {
                prop_assert!(count(&result, n) <= count(&ours, n) + count(&theirs, n));
            }
        }
    }

    #[test]
    fn tags_are_those_of_either_side_without_those_that_a_side_removed(
        base in prop::option::of(prop::collection::vec(0..6u32, 0..5)),
        ours in prop::option::of(prop::collection::vec(0..9u32, 0..6)),
        theirs in prop::option::of(prop::collection::vec(0..9u32, 0..6)),
    ) {
        let sides = [&base, &ours, &theirs];
        let texts = sides.map(|tags| tagged(tags.as_ref()));
        let mut merged = merged(&texts[0], &texts[1], &texts[2]);
        let document: Value = serde_json::from_str(&merged.vcon.to_json()).unwrap();
        let attachments = document["attachments"].as_array().unwrap();
        prop_assert!(attachments.len() <= 1 && merged.conflicts.is_empty());
        let found: Vec<u32> = attachments.first().map_or(Vec::new(), |tags| {
            match &tags["body"] {
                Value::String(text) => serde_json::from_str(text).unwrap(),
                list => serde_json::from_value(list.clone()).unwrap(),
            }
        });
        let [before, our, their] = sides.map(|tags| {
            tags.iter().flatten().copied().collect::<BTreeSet<u32>>()
        });
        let either: BTreeSet<u32> = our.union(&their).copied().collect();
        let mut expected: BTreeSet<u32> = our.intersection(&their).copied().collect();
        expected.extend(either.difference(&before));
        prop_assert_eq!(found.iter().copied().collect::<BTreeSet<u32>>(), expected);
    }

    #[test]
    fn analyses_stay_with_their_dialogs(
        base in 0..5u32,
        removed in prop::collection::vec((any::<bool>(), any::<bool>()), 5),
        added in (0..4u32, 0..4u32),
        analysed in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        let dialogs: Vec<u32> = (0..base).collect();
        let (our_removed, their_removed): (Vec<bool>, Vec<bool>) = removed.into_iter().unzip();
        let new = |first: u32, count: u32| (first..first + count).collect::<Vec<u32>>();
        let texts = [
            side_of(&dialogs, &[false; 5], &[], &[], "base"),
            side_of(&dialogs, &our_removed, &new(100, added.0), &analysed, "ours"),
            side_of(&dialogs, &their_removed, &new(200, added.1), &analysed, "theirs"),
        ]
        .map(|side| side.to_string());
        let mut merged = merged(&texts[0], &texts[1], &texts[2]);
        let document: Value = serde_json::from_str(&merged.vcon.to_json()).unwrap();
        let dialogs = document["dialog"].as_array().unwrap();
        let analyses = document["analysis"].as_array().unwrap();
        for (place, analysis) in analyses.iter().enumerate() {
            let is_there = dialogs.iter().any(|dialog| dialog["id"] == analysis["about"]);
            let conflict = format!("analysis[{place}].dialog");
            prop_assert_eq!(is_there, !merged.conflicts.contains(&conflict));
            let target = usize::try_from(analysis["dialog"][0].as_u64().unwrap()).unwrap();
            prop_assert!(!is_there || dialogs[target]["id"] == analysis["about"]);
        }
    }
}
