//! Which routing keys a topic binding takes, as AMQP says. Pure.

/// Whether `pattern` takes `key`: words between dots, `*` for one word, `#` for any number of them.
pub(super) fn matches(pattern: &str, key: &str) -> bool {
    matches_words(&words(pattern), &words(key))
}

fn words(text: &str) -> Vec<&str> {
    if text.is_empty() {
        return Vec::new();
    }
    text.split('.').collect()
}

fn matches_words(pattern: &[&str], key: &[&str]) -> bool {
    match pattern.split_first() {
        None => key.is_empty(),
        Some((&"#", rest)) => {
            (0..=key.len()).any(|skip| matches_words(rest, key.get(skip..).unwrap_or_default()))
        }
        Some((word, rest)) => key.split_first().is_some_and(|(first, key)| {
            (*word == "*" || word == first) && matches_words(rest, key)
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Goal: the examples of the AMQP documents, and ours.
    #[test]
    fn patterns_match_as_amqp_says() {
        let taken = [
            ("broadcasts.*", "broadcasts.all"),
            ("web01.example.com", "web01.example.com"),
            ("*.orange.*", "quick.orange.rabbit"),
            ("lazy.#", "lazy"),
            ("lazy.#", "lazy.brown.fox"),
            ("#.fox", "fox"),
            ("#.b.#", "a.b.c.b"),
            ("#", ""),
            ("", ""),
            ("a.*.b", "a..b"),
        ];
        for (pattern, key) in taken {
            assert!(matches(pattern, key), "{pattern} {key}");
        }
        let not_taken = [
            ("broadcasts.*", "broadcasts"),
            ("broadcasts.*", "broadcasts.a.b"),
            ("*.example.com", "web01.example.org"),
            ("*", ""),
            ("lazy.#", "lazier"),
        ];
        for (pattern, key) in not_taken {
            assert!(!matches(pattern, key), "{pattern} {key}");
        }
    }

    proptest! {
        /// A key matches itself, itself with any word starred, and `#` in place of any end.
        #[test]
        fn a_key_matches_its_generalisations(key in "[a-c]{1,3}(\\.[a-c]{1,3}){0,4}", cut in 0..5_usize) {
            let words: Vec<&str> = key.split('.').collect();
            let at = cut % words.len();
            let mut starred = words.clone();
            starred[at] = "*";
            let mut ended = words[..at].to_vec();
            ended.push("#");
            prop_assert!(matches(&key, &key));
            prop_assert!(matches(&starred.join("."), &key));
            prop_assert!(matches(&ended.join("."), &key));
        }
    }
}
