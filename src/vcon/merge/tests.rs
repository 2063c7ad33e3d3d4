//! The cases of a merge, one by one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::{Value, json};

use super::*;
use crate::vcon::{JsonBodies, VconId};

fn vcon(text: &str) -> Vcon {
    Vcon::parse(VconId::random(), text.to_owned()).unwrap()
}

/// The merged document, the conflicts, and whether it counts as changed.
fn merged(base: &str, ours: &str, theirs: &str) -> (String, Vec<String>, bool) {
    let ours = vcon(ours);
    let merged = merge(base, &ours, theirs.to_owned()).unwrap();
    let mut document = merged.vcon;
    assert_eq!(document.id(), ours.id());
    let changed = document.is_changed();
    (document.to_json(), merged.conflicts, changed)
}

/// Fails unless the merge makes this, and these conflicts.
#[track_caller]
fn expect(base: &Value, ours: &Value, theirs: &Value, expected: &Value, conflicts: &[&str]) {
    let (text, found, _) = merged(&base.to_string(), &ours.to_string(), &theirs.to_string());
    let mut document: Value = serde_json::from_str(&text).unwrap();
    document.as_object_mut().unwrap().remove("vcon");
    assert_eq!(&document, expected);
    assert_eq!(found, conflicts);
}

/// Fails unless the merge of this list makes this, and these conflicts.
#[track_caller]
fn expect_list(name: &str, lists: [Value; 4], conflicts: &[&str]) {
    let [base, ours, theirs, expected] = lists.map(|list| json!({name: list}));
    expect(&base, &ours, &theirs, &expected, conflicts);
}

fn tags(tags: &[&str]) -> Value {
    let body = serde_json::to_string(tags).unwrap();
    json!({"purpose": "tags", "body": body, "encoding": "json"})
}

#[test]
fn a_member_comes_from_the_side_that_changed_it() {
    let base = json!({"subject": "s", "a": 1, "gone": 1, "left": 1, "x": [1]});
    let ours = json!({"subject": "t", "a": 1, "left": 1, "new": 5, "x": [1]});
    let theirs = json!({"subject": "s", "a": 2, "gone": 1, "x": [1], "other": null});
    let expected = json!({"subject": "t", "a": 2, "new": 5, "x": [1], "other": null});
    expect(&base, &ours, &theirs, &expected, &[]);
}

#[test]
fn of_a_member_that_both_changed_the_chains_value_stands() {
    for (base, ours, theirs, conflicts) in [
        (
            json!({"s": 1}),
            json!({"s": 2}),
            json!({"s": 3}),
            &["s"][..],
        ),
        (json!({"s": 1}), json!({}), json!({"s": 3}), &["s"]),
        (json!({"s": 1}), json!({"s": 2}), json!({}), &["s"]),
        (json!({}), json!({"s": 2}), json!({"s": 3}), &["s"]),
        (json!({"s": null}), json!({"s": 2}), json!({}), &["s"]),
        (json!({"s": 1}), json!({"s": 2}), json!({"s": 2}), &[]),
        (json!({"s": 1}), json!({}), json!({}), &[]),
        (
            json!({"updated_at": 1}),
            json!({"updated_at": 2}),
            json!({"updated_at": 3}),
            &[],
        ),
    ] {
        expect(&base, &ours, &theirs, &ours, conflicts);
    }
}

#[test]
fn values_are_compared_and_the_text_of_the_chosen_side_is_kept() {
    let base = r#"{"n":1.0,"s":"\u00e9","o":{"a":1,"b":2},"big":123456789012345678901}"#;
    let ours = r#"{"n": 1.00,"s":"é","o":{"b":2, "a":1e0},"big":123456789012345678901,"z":1.50}"#;
    let theirs =
        r#"{"n":10e-1,"s":"\u00E9","o":{"a" : 1,"b":2},"big":123456789012345678902,"y":[ 7.00 ]}"#;
    let (text, conflicts, changed) = merged(base, ours, theirs);
    assert_eq!(
        text,
        concat!(
            r#"{"n":10e-1,"s":"\u00E9","o":{"a" : 1,"b":2},"big":123456789012345678902,"#,
            r#""y":[ 7.00 ],"z":1.50,"vcon":"0.4.0"}"#
        )
    );
    assert!(conflicts.is_empty() && changed);
}

#[test]
fn a_list_that_only_ours_changed_keeps_its_text() {
    let (base, ours) = (r#"{"parties":[]}"#, r#"{"parties":[ {"n" : 1.0} ]}"#);
    let (text, _, changed) = merged(base, ours, r#"{"parties":[],"x":1}"#);
    assert_eq!(text, r#"{"parties":[ {"n" : 1.0} ],"x":1,"vcon":"0.4.0"}"#);
    assert!(changed);
}

#[test]
fn old_names_and_bodies_in_other_forms_are_no_change() {
    let base = concat!(
        r#"{"vcon":"0.0.1","group":[],"redacted":{},"appended":null,"must_support":["x"],"#,
        r#""dialog":[{"type":"text","mimetype":"a/b","body":"x"}],"#,
        r#""analysis":[{"type":"summary","body":{"k": 1.0}}],"#,
        r#""attachments":[{"type":"note","body":["n"],"encoding":"none"}]}"#
    );
    let current = vcon(base).to_json();
    let spaced = current.replace(r#"{"k": 1.0}"#, r#"{"k" :1}"#);
    assert_ne!(current, spaced);
    let textual = vcon(base).writing(JsonBodies::Text).to_json();
    assert_ne!(current, textual);
    for (ours, theirs) in [
        (current.as_str(), base),
        (base, current.as_str()),
        (spaced.as_str(), base),
        (current.as_str(), spaced.as_str()),
        (textual.as_str(), base),
        (current.as_str(), textual.as_str()),
        (textual.as_str(), spaced.as_str()),
    ] {
        let (_, conflicts, changed) = merged(base, ours, theirs);
        assert!(conflicts.is_empty() && !changed);
    }
}

#[test]
fn what_either_side_added_to_a_list_is_kept_once() {
    let [a, b, x, y] = ["a", "b", "x", "y"].map(|name| json!({"name": name}));
    for name in LISTS {
        for [base, ours, theirs, expected] in [
            [json!([a]), json!([a, x]), json!([a, y]), json!([a, y, x])],
            [json!([]), json!([x]), json!([y]), json!([y, x])],
            [json!([a]), json!([a, x]), json!([a, x]), json!([a, x])],
            [
                json!([a]),
                json!([a, x, x]),
                json!([a, x]),
                json!([a, x, x]),
            ],
            [json!([a]), json!([a, a]), json!([a, b]), json!([a, b, a])],
            [
                json!([a]),
                json!([a, x, y]),
                json!([a, y, b]),
                json!([a, y, b, x]),
            ],
            [
                json!([a, b]),
                json!([a, b, x]),
                json!([b, a]),
                json!([b, a, x]),
            ],
            [json!([a]), json!([x, a]), json!([a, y]), json!([a, y, x])],
            // Nobody else touched it: the chain's order stands.
            [
                json!([a, b]),
                json!([x, b, a]),
                json!([a, b]),
                json!([x, b, a]),
            ],
            [
                json!([a, b]),
                json!([a, b]),
                json!([x, b, a]),
                json!([x, b, a]),
            ],
        ] {
            expect_list(name, [base, ours, theirs, expected], &[]);
        }
    }
}

#[test]
fn what_one_side_removed_from_a_list_is_removed() {
    let [a, b, x] = ["a", "b", "x"].map(|name| json!({"name": name}));
    for name in LISTS {
        for [base, ours, theirs, expected] in [
            [json!([a, b]), json!([b]), json!([a, b, x]), json!([b, x])],
            [json!([a, b]), json!([a, b, x]), json!([b]), json!([b, x])],
            [json!([a, b]), json!([b]), json!([a]), json!([])],
            [json!([a, a]), json!([a]), json!([a]), json!([a])],
            [json!([a, 7]), json!([a]), json!([a, 7, 8]), json!([a, 8])],
        ] {
            expect_list(name, [base, ours, theirs, expected], &[]);
        }
    }
}

#[test]
fn a_list_that_is_missing_is_an_empty_one() {
    let [a, x] = ["a", "x"].map(|name| json!({"name": name}));
    for name in LISTS {
        let with = |list: &[&Value]| json!({name: list});
        let none = json!({});
        for (base, ours, theirs, expected) in [
            (&with(&[&a]), &none, &with(&[&a, &x]), &with(&[&x])),
            (&with(&[&a]), &with(&[&a, &x]), &none, &with(&[&x])),
            (&with(&[&a]), &none, &with(&[&a]), &none),
            (&with(&[&a]), &with(&[&a]), &none, &none),
            (&none, &with(&[]), &none, &with(&[])),
            (&none, &none, &with(&[]), &with(&[])),
            (&with(&[]), &none, &with(&[&x]), &with(&[&x])),
        ] {
            expect(base, ours, theirs, expected, &[]);
        }
    }
}

#[test]
fn a_changed_element_takes_its_new_form_in_its_place() {
    let part = |name: &str, n: u32| json!({"type": name, "n": n});
    let [a, b, a2, b2, x] = [
        part("a", 1),
        part("b", 1),
        part("a", 2),
        part("b", 2),
        part("x", 1),
    ];
    for name in LISTS {
        for [base, ours, theirs, expected] in [
            [
                json!([a, b]),
                json!([a2, b]),
                json!([a, b, x]),
                json!([a2, b, x]),
            ],
            [
                json!([a, b]),
                json!([a, b, x]),
                json!([a2, b]),
                json!([a2, b, x]),
            ],
            [
                json!([a, b]),
                json!([a2, b]),
                json!([a, b2]),
                json!([a2, b2]),
            ],
            [
                json!([a, b]),
                json!([a2, b]),
                json!([a2, b, x]),
                json!([a2, b, x]),
            ],
            [
                json!([a, b]),
                json!([a2, b]),
                json!([x, a, b]),
                json!([x, a2, b]),
            ],
            // One that the other side removed counts as added.
            [json!([a, b]), json!([a2, b]), json!([b]), json!([b, a2])],
            [json!([a, b]), json!([b]), json!([a2, b]), json!([a2, b])],
            [
                json!([1, 2]),
                json!([3, 2]),
                json!([1, 2, 4]),
                json!([3, 2, 4]),
            ],
        ] {
            // The names of attachments' types are renewed.
            let renewed = |list: Value| match name {
                "attachments" => {
                    let text = list.to_string().replace("\"type\"", "\"purpose\"");
                    serde_json::from_str(&text).unwrap()
                }
                _ => list,
            };
            let lists = [base, ours, theirs, renewed(expected)];
            expect_list(name, lists, &[]);
        }
    }
}

#[test]
fn of_two_equal_elements_the_one_in_the_same_place_is_the_same() {
    let [a, b, a2, x] = ["a", "b", "a2", "x"].map(|name| json!({"name": name}));
    for name in LISTS {
        let lists = [
            json!([a, b, a]),
            json!([a2, b, a]),
            json!([a, b, a, x]),
            json!([a2, b, a, x]),
        ];
        expect_list(name, lists, &[]);
    }
}

#[test]
fn an_element_of_another_type_in_the_same_place_is_another_element() {
    let [a, x, y] = ["a", "x", "y"].map(|kind| json!({"type": kind}));
    for name in ["parties", "dialog", "analysis"] {
        let lists = [json!([a]), json!([x]), json!([y]), json!([y, x])];
        expect_list(name, lists, &[]);
    }
}

#[test]
fn an_element_is_known_by_its_id_wherever_it_is() {
    let part = |id: &str, n: u32| json!({"id": id, "n": n});
    for name in LISTS {
        expect_list(
            name,
            [
                json!([part("a", 1), part("b", 1)]),
                json!([part("b", 2)]),
                json!([part("a", 1), part("b", 1), part("c", 1)]),
                json!([part("b", 2), part("c", 1)]),
            ],
            &[],
        );
        // Another id in the same place is another element.
        expect_list(
            name,
            [
                json!([part("a", 1)]),
                json!([part("b", 1)]),
                json!([part("c", 1)]),
                json!([part("c", 1), part("b", 1)]),
            ],
            &[],
        );
    }
}

#[test]
fn of_an_element_that_both_changed_the_chains_form_stands() {
    let part = |n: u32| json!({"id": "a", "n": n});
    for name in LISTS {
        let conflict = format!("{name}[1]");
        expect_list(
            name,
            [
                json!([part(1)]),
                json!([part(2), 5]),
                json!([7, part(3)]),
                json!([7, part(2), 5]),
            ],
            &[&conflict],
        );
    }
}

#[test]
fn tags_are_united() {
    for (base, ours, theirs, expected) in [
        (
            &["a"][..],
            &["a", "x"][..],
            &["a", "y"][..],
            &["a", "y", "x"][..],
        ),
        (&["a"], &["a", "x"], &["a", "x"], &["a", "x"]),
        (&["a", "b"], &["a", "x"], &["a", "b", "y"], &["a", "y", "x"]),
        (&["a", "b"], &["a", "b", "x"], &["b"], &["b", "x"]),
        (&["a"], &["x"], &["y"], &["y", "x"]),
        (
            &["a", "a"],
            &["a", "a", "x"],
            &["a", "a", "y"],
            &["a", "y", "x"],
        ),
        (&["a"], &["a"], &["a", "y", "y"], &["a", "y", "y"]),
        (&[], &["x"], &["y"], &["y", "x"]),
    ] {
        let note = json!({"purpose": "note"});
        let list = |tagged: &[&str]| json!([note, tags(tagged)]);
        expect_list(
            "attachments",
            [list(base), list(ours), list(theirs), list(expected)],
            &[],
        );
    }
}

#[test]
fn two_new_tags_attachments_become_one() {
    let note = json!({"purpose": "note"});
    for base in [json!([]), json!([note])] {
        let with = |tagged: &[&str]| {
            let mut list = base.clone();
            list.as_array_mut().unwrap().push(tags(tagged));
            list
        };
        expect_list(
            "attachments",
            [base.clone(), with(&["x"]), with(&["y"]), with(&["y", "x"])],
            &[],
        );
    }
    let (x, y) = (
        json!({"attachments": [tags(&["x"])]}),
        json!({"attachments": [tags(&["y"])]}),
    );
    expect(
        &json!({}),
        &x,
        &y,
        &json!({"attachments": [tags(&["y", "x"])]}),
        &[],
    );
}

#[test]
fn tags_are_united_in_each_of_their_forms() {
    let array = json!({"type": "tags", "body": ["a:a", "y:y"], "encoding": "none", "party": 7});
    let expected = json!({"purpose": "tags", "body": r#"["a:a","y:y","x:x"]"#,
        "encoding": "json", "party": 7, "more": 1});
    for base in [json!(null), json!(["a:a"]), json!(r#"[ "\u0061:a" ]"#)] {
        let base = json!({"purpose": "tags", "body": base});
        let mut ours = tags(&["a:a", "x:x"]);
        ours["more"] = 1.into();
        expect_list(
            "attachments",
            [
                json!([base]),
                json!([ours]),
                json!([array]),
                json!([expected]),
            ],
            &[],
        );
    }
}

#[test]
fn of_tags_that_one_side_removed_the_other_sides_additions_stay() {
    for (first, second) in [
        (json!([tags(&["a", "x"])]), json!([])),
        (json!([]), json!([tags(&["a", "x"])])),
    ] {
        let base = json!([tags(&["a"])]);
        expect_list(
            "attachments",
            [base, first, second, json!([tags(&["x"])])],
            &[],
        );
    }
    for (first, second) in [
        (json!([tags(&["a"])]), json!([])),
        (json!([5]), json!([tags(&["a"]), 7])),
    ] {
        let base = json!([tags(&["a"])]);
        let mut all: Vec<Value> = second.as_array().unwrap().clone();
        all.extend(first.as_array().unwrap().clone());
        all.retain(|element| !element.is_object());
        expect_list("attachments", [base, first, second, json!(all)], &[]);
    }
}

#[test]
fn tags_with_other_properties_that_both_changed_name_them() {
    let with = |tagged: &[&str], start: u32| {
        let mut tags = tags(tagged);
        tags["start"] = start.into();
        json!([tags])
    };
    expect_list(
        "attachments",
        [
            with(&["a"], 1),
            with(&["x"], 2),
            with(&["y"], 3),
            with(&["y", "x"], 2),
        ],
        &["attachments[0].start"],
    );
}

#[test]
fn tags_that_cannot_be_read_are_an_element_as_any_other() {
    let [ours, theirs] = ["YTpi", "Yzpk"]
        .map(|body| json!({"purpose": "tags", "body": body, "encoding": "base64url"}));
    expect_list(
        "attachments",
        [
            json!([]),
            json!([ours, tags(&["x"])]),
            json!([theirs, tags(&["y"])]),
            json!([theirs, tags(&["y", "x"]), ours]),
        ],
        &[],
    );
}

#[test]
fn tags_in_different_shapes_are_united() {
    let shapes = |name: &str| {
        [
            json!({"purpose": "tags", "body": {name: "1"}}),
            json!({"purpose": "tags", "body": [format!("{name}:1")], "encoding": "json"}),
            json!({"purpose": "tags", "body": format!("{{\"{name}\":1}}"), "encoding": "json"}),
            json!({"purpose": "tags", "body": format!("{name}:1"), "encoding": "none"}),
        ]
    };
    for ours in shapes("a") {
        for theirs in shapes("b") {
            for base in [json!([]), json!([tags(&["gone"])])] {
                expect_list(
                    "attachments",
                    [
                        base,
                        json!([ours]),
                        json!([theirs]),
                        json!([tags(&["b:1", "a:1"])]),
                    ],
                    &[],
                );
            }
        }
    }
}

#[test]
fn what_is_no_list_is_a_member_as_any_other() {
    let object = r#"{"a":1}"#;
    for name in LISTS {
        let with = |value: &str| format!(r#"{{"{name}":{value},"x":0}}"#);
        for (sides, expected, is_conflict) in [
            ([object, object, object], object, false),
            (["null", "null", "null"], "null", false),
            ([object, "[1]", object], "[1]", false),
            ([object, object, "[1]"], "[1]", false),
            (["[1]", object, "[1]"], object, false),
            (["[1]", object, "[2]"], object, true),
            ([object, "7", "[2]"], "7", true),
            (["[]", "null", "[]"], "null", false),
            (["null", "[]", "null"], "[]", false),
            // Without elements it is none yet.
            (["null", "[1]", "null"], "[1]", false),
            (["null", "null", "[1]"], "[1]", false),
            (["null", "[1]", "[2]"], "[2,1]", false),
            (["[1]", "null", "[1,2]"], "[2]", false),
        ] {
            let [base, ours, theirs] = sides.map(with);
            let expected = with(expected).replace('}', ",\"vcon\":\"0.4.0\"}");
            let expected = expected.replace("{\"a\":1,\"vcon\":\"0.4.0\"}", object);
            let (text, conflicts, changed) = merged(&base, &ours, &theirs);
            assert_eq!(text, expected, "{sides:?}");
            let named = conflicts.iter().map(String::as_str).collect::<Vec<_>>();
            assert_eq!(named, if is_conflict { vec![name] } else { vec![] });
            let theirs = theirs.replace("\"x\":0}", "\"x\":0,\"vcon\":\"0.4.0\"}");
            assert_eq!(changed, text != theirs, "{sides:?}");
        }
    }
    // A missing one is none.
    let (text, _, _) = merged(r#"{"dialog":null}"#, r#"{"dialog":null}"#, "{}");
    assert_eq!(text, r#"{"vcon":"0.4.0"}"#);
    let (text, _, _) = merged("{}", r#"{"dialog":{}}"#, "{}");
    assert_eq!(text, r#"{"dialog":{},"vcon":"0.4.0"}"#);
}

#[test]
fn a_list_that_was_none_can_be_added_to_after_the_merge() {
    let (text, ..) = merged(
        r#"{"attachments":null}"#,
        r#"{"attachments":null}"#,
        r#"{"attachments":[{"purpose":"a"}]}"#,
    );
    assert!(text.contains(r#""purpose":"a""#), "{text}");
    let ours = r#"{"attachments":[{"purpose":"b"}],"x":1}"#;
    let theirs = r#"{"attachments":[{"purpose":"a"}]}"#;
    let mut merged = merge(r#"{"attachments":null}"#, &vcon(ours), theirs.to_owned()).unwrap();
    merged.vcon.add_tags(&["t:t".to_owned()]).unwrap();
    let attachments = r#"[{"purpose":"a"},{"purpose":"b"},{"purpose":"tags","body":"[\"t:t\"]","encoding":"json"}]"#;
    let text = merged.vcon.to_json();
    assert!(text.contains(attachments), "{text}");
}

#[test]
fn a_sealed_document_comes_from_one_side() {
    let (open, more) = (r#"{"vcon":"0.4.0","a":1}"#, r#"{"vcon":"0.4.0","a":2}"#);
    let one = r#"{"payload":"p","signatures":[{"signature":"s"}]}"#;
    let again = r#"{ "signatures":[{"signature":"s"}],"payload":"p"}"#;
    let other = r#"{"ciphertext":"c","iv":"i"}"#;
    for ([base, ours, theirs], expected, is_changed) in [
        ([one, one, one], one, false),
        ([one, one, again], again, false),
        ([one, again, one], one, false),
        ([one, one, other], other, false),
        ([one, one, open], open, false),
        ([open, open, one], one, false),
        ([open, one, open], one, true),
        ([open, one, again], again, false),
        ([one, other, one], other, true),
        ([r#"{"a":1}"#, open, one], one, false),
    ] {
        let (text, conflicts, changed) = merged(base, ours, theirs);
        assert_eq!(text, expected);
        assert_eq!((conflicts.len(), changed), (0, is_changed), "{ours}");
    }
    for [base, ours, theirs] in [[open, more, one], [open, one, more], [one, other, open]] {
        let error = merge(base, &vcon(ours), theirs.to_owned()).unwrap_err();
        assert!(error.to_string().contains("cannot be merged"), "{error}");
    }
}

#[test]
fn references_of_what_ours_added_follow_what_they_mean() {
    let base = json!({
        "parties": [{"name": "p"}],
        "dialog": [{"type": "a", "parties": [0]}],
        "analysis": [{"type": "s", "dialog": 0}],
    });
    let mut ours = base.clone();
    ours["parties"] = json!([{"name": "p"}, {"name": "ours"}]);
    ours["dialog"] = json!([
        {"type": "a", "parties": [0]},
        {"type": "b", "parties": [1, [0, 1]], "originator": 1,
         "party_history": [{"party": 1, "event": "join"}, {"party": 0}, 1, {"event": 1}]},
        {"type": "c", "parties": 1, "target_dialog": [0, 1], "original": 2},
    ]);
    ours["analysis"] = json!([
        {"type": "s", "dialog": 0},
        {"type": "t", "dialog": 1},
        {"type": "u", "dialog": [0, 1, 2, 9, "1", 1.0]},
    ]);
    ours["attachments"] = json!([{"purpose": "n", "party": 1, "dialog": 2, "start": 1}]);
    let mut theirs = base.clone();
    theirs["parties"] = json!([{"name": "p"}, {"name": "theirs"}]);
    theirs["dialog"] = json!([
        {"type": "a", "parties": [0]},
        {"type": "t", "parties": [1]},
    ]);
    theirs["analysis"] = json!([{"type": "s", "dialog": 0}, {"type": "t", "dialog": 1}]);
    let expected = json!({
        "parties": [{"name": "p"}, {"name": "theirs"}, {"name": "ours"}],
        "dialog": [
            {"type": "a", "parties": [0]},
            {"type": "t", "parties": [1]},
            {"type": "b", "parties": [2, [0, 2]], "originator": 2,
             "party_history": [{"party": 2, "event": "join"}, {"party": 0}, 2, {"event": 1}]},
            {"type": "c", "parties": 2, "target_dialog": [0, 2], "original": 3},
        ],
        "analysis": [
            {"type": "s", "dialog": 0},
            {"type": "t", "dialog": 1},
            // As it stands on both sides, but of another dialog.
            {"type": "t", "dialog": 2},
            {"type": "u", "dialog": [0, 2, 3, 9, "1", 1.0]},
        ],
        "attachments": [{"purpose": "n", "party": 2, "dialog": 3, "start": 1}],
    });
    expect(&base, &ours, &theirs, &expected, &[]);
}

#[test]
fn references_follow_what_the_other_side_removed_before_them() {
    let dialog = |name: &str| json!({"type": name});
    let [a, b, c] = ["a", "b", "c"].map(dialog);
    let list = json!([a, b, c]);
    // Theirs means the last one; ours has taken out the first.
    let base = json!({"dialog": list});
    let ours = json!({"dialog": [b, c]});
    let theirs = json!({"dialog": list, "analysis": [{"dialog": 2}]});
    let expected = json!({"dialog": [b, c], "analysis": [{"dialog": 1}]});
    expect(&base, &ours, &theirs, &expected, &[]);
    expect(&base, &theirs, &ours, &expected, &[]);
    // Both have taken one out, and both have said so in what refers to the last.
    let base = json!({"dialog": list, "analysis": [{"dialog": 2}]});
    let ours = json!({"dialog": [b, c], "analysis": [{"dialog": 1}]});
    let theirs = json!({"dialog": [a, c], "analysis": [{"dialog": 1}]});
    let expected = json!({"dialog": [c], "analysis": [{"dialog": 0}]});
    expect(&base, &ours, &theirs, &expected, &[]);
    // What both have as it was is left alone: one of them may not have looked after it.
    let ours = json!({"dialog": [b, c], "analysis": [{"dialog": 2}]});
    expect(&base, &ours, &base, &ours, &[]);
    expect(&base, &base, &ours, &ours, &[]);
}

#[test]
fn a_reference_to_what_the_other_side_removed_is_named() {
    let [a, b] = ["a", "b"].map(|name| json!({"type": name}));
    let base = json!({"dialog": [a, b]});
    let fewer = json!({"dialog": [a]});
    let more = json!({"dialog": [a, b], "analysis": [{"dialog": 0}, {"dialog": 1}]});
    let expected = json!({"dialog": [a], "analysis": more["analysis"]});
    for (ours, theirs) in [(&fewer, &more), (&more, &fewer)] {
        expect(&base, ours, theirs, &expected, &["analysis[1].dialog"]);
    }
}

#[test]
fn what_is_as_theirs_is_no_change() {
    let base = r#"{"a":1,"parties":[ {"n":1} ],"dialog":[{"x":1}]}"#;
    let theirs = r#"{"a":1.0,"parties":[ {"n":1.0} ,2],"dialog":[{"x" : 1}],"b":2}"#;
    for ours in [
        base,
        theirs,
        r#"{"b":2.0,"a":1,"parties":[{"n":1},2],"dialog":[{"x":1}]}"#,
    ] {
        let (text, conflicts, changed) = merged(base, ours, theirs);
        assert!(!changed && conflicts.is_empty());
        assert_eq!(text, vcon(theirs).to_json());
    }
    let (_, _, changed) = merged(base, r#"{"a":1,"parties":[{"n":1}],"dialog":[]}"#, base);
    assert!(changed);
}

#[test]
fn what_is_no_vcon_is_an_error() {
    let ours = vcon("{}");
    for text in ["", "[]", "\"{}\"", "{"] {
        assert!(merge(text, &ours, "{}".to_owned()).is_err(), "{text}");
        assert!(merge("{}", &ours, text.to_owned()).is_err(), "{text}");
    }
}

#[test]
fn names_of_conflicts_are_not_endless() {
    let name = "é".repeat(1000);
    let of = |n: u32| json!({&name: n}).to_string();
    let (_, conflicts, _) = merged(&of(1), &of(2), &of(3));
    assert_eq!(conflicts, ["é".repeat(80)]);
}

#[test]
fn thousands_of_elements_are_merged_as_a_few_are() {
    let part = |n: usize| json!({"id": n.to_string(), "type": "t", "body": "x"});
    let list = |from, to| (from..to).map(part).collect::<Vec<Value>>();
    let document = |from, to| json!({"dialog": list(from, to), "parties": list(from, to)});
    expect(
        &document(0, 10_000),
        &document(3_000, 14_000),
        &document(1_000, 13_000),
        &document(3_000, 14_000),
        &[],
    );
}
