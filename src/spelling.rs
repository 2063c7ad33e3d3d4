//! "Did you mean …?" for misspelt names of options, modules and variables; and the plural.

/// `; did you mean ...?` if one of `known` is at most two edits away from `name`.
pub fn did_you_mean<S: AsRef<str>>(name: &str, known: impl IntoIterator<Item = S>) -> String {
    let nearest = known
        .into_iter()
        .map(|known| (distance(name, known.as_ref()), known))
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((edits, known)) if edits <= 2 && edits < known.as_ref().chars().count() => {
            format!("; did you mean `{}`?", known.as_ref())
        }
        _ => String::new(),
    }
}

/// `1 worker`, `4 workers`; `1 entry`, `2 entries`.
pub fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    // More than that is many, too.
    let count = count.try_into().unwrap_or(u64::MAX);
    let plural = match noun.strip_suffix('y') {
        _ if count == 1 => return format!("1 {noun}"),
        Some(stem) if !stem.ends_with(['a', 'e', 'o']) => format!("{stem}ies"),
        _ => format!("{noun}s"),
    };
    format!("{count} {plural}")
}

/// The number of letters to insert, remove or replace to get from `a` to `b`.
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (slot, other) in row.iter_mut().skip(1).zip(&b) {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = *slot;
            left = replaced.min(left + 1).min(diagonal + 1);
            *slot = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        for (count, noun, text) in [
            (0, "worker", "0 workers"),
            (1, "worker", "1 worker"),
            (2, "entry", "2 entries"),
            (1, "entry", "1 entry"),
            (3, "key", "3 keys"),
            (2, "vCon", "2 vCons"),
        ] {
            assert_eq!(counted(count, noun), text);
        }
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("tagr", "tagger", 2),
            ("storage", "storages", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn only_near_names_are_suggested() {
        let known = ["links", "chains"];
        assert_eq!(
            did_you_mean("chain", known),
            "; did you mean `chains`?".to_owned()
        );
        assert_eq!(did_you_mean("webhooks", known), "");
        assert_eq!(did_you_mean("x", ["y"]), "");
    }
}
