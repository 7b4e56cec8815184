//! The rules for a kind's names, and the names it gets when none are given.

/// The most bytes a segment of a key may have.
const MAX_SEGMENT_BYTES: usize = 63;

/// A group must be a valid segment of a key.
pub(crate) fn check_group(name: &str) -> Result<(), &'static str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    match (bytes.first(), bytes.last()) {
        (None, _) | (_, None) => Err("it is empty"),
        _ if bytes.len() > MAX_SEGMENT_BYTES => Err("it is longer than 63 bytes"),
        _ if !bytes
            .iter()
            .all(|&byte| plain(byte) || b"._-".contains(&byte)) =>
        {
            Err("only a-z, 0-9, `.`, `_` and `-` are allowed")
        }
        (Some(&first), Some(&last)) if !plain(first) || !plain(last) => {
            Err("it must begin and end with a letter or digit")
        }
        _ => Ok(()),
    }
}

/// Plural, singular and short names must also be words of a command line and of a URL, where a
/// dot separates plural and group: letters, digits and `-`.
pub(crate) fn check_word(name: &str) -> Result<(), &'static str> {
    let bytes = name.as_bytes();
    let letter_or_digit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    match (bytes.first(), bytes.last()) {
        (None, _) | (_, None) => Err("it is empty"),
        _ if bytes.len() > MAX_SEGMENT_BYTES => Err("it is longer than 63 bytes"),
        _ if !bytes
            .iter()
            .all(|&byte| letter_or_digit(byte) || byte == b'-') =>
        {
            Err("only a-z, 0-9 and `-` are allowed")
        }
        (Some(&first), Some(&last)) if !first.is_ascii_lowercase() || !letter_or_digit(last) => {
            Err("it must begin with a letter and end with a letter or digit")
        }
        _ => Ok(()),
    }
}

/// A kind is an UpperCamelCase word.
pub(crate) fn check_kind(name: &str) -> Result<(), &'static str> {
    if name.len() > MAX_SEGMENT_BYTES {
        return Err("it is longer than 63 bytes");
    }
    if !name.starts_with(|first: char| first.is_ascii_uppercase()) {
        return Err("it must be UpperCamelCase, as `ReplicationController`");
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(
            "only letters and digits are allowed: UpperCamelCase, as `ReplicationController`",
        );
    }
    Ok(())
}

/// A version is `v1`, or `v1alpha1` and `v1beta1` before it.
pub(crate) fn check_version(name: &str) -> Result<(), &'static str> {
    let number = |text: &str| {
        !text.is_empty()
            && text.len() <= 9
            && !text.starts_with('0')
            && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let valid = name.strip_prefix('v').is_some_and(|rest| {
        let stage = ["alpha", "beta"]
            .iter()
            .find_map(|stage| rest.split_once(stage));
        stage.map_or_else(
            || number(rest),
            |(major, minor)| number(major) && number(minor),
        )
    });
    if valid {
        Ok(())
    } else {
        Err("write `v1`, or `v1alpha1` or `v1beta1` before it is stable")
    }
}

/// A column's path is `.metadata…`, `.spec…` or `.status…`: field names with dots before them.
pub(crate) fn check_column_path(path: &str) -> Result<(), &'static str> {
    let mut segments = path.split('.');
    if segments.next() != Some("") {
        return Err("it must begin with a dot, as `.status.readyReplicas`");
    }
    let mut segments = segments.peekable();
    if !matches!(segments.peek(), Some(&("metadata" | "spec" | "status"))) {
        return Err("it must begin with `.metadata`, `.spec` or `.status`");
    }
    let field = |segment: &str| {
        !segment.is_empty()
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    if segments.all(field) {
        Ok(())
    } else {
        Err("it must be field names with one dot before each, as `.status.readyReplicas`")
    }
}

/// The English plural of a lower-case word.
pub(crate) fn plural(singular: &str) -> String {
    let ends_with = |endings: &[&str]| endings.iter().any(|ending| singular.ends_with(ending));
    if ends_with(&["s", "x", "z", "ch", "sh"]) {
        return format!("{singular}es");
    }
    match singular.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'i', 'o', 'u']) => format!("{stem}ies"),
        _ => format!("{singular}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_are_english() {
        let words = [
            ("pod", "pods"),
            ("ingress", "ingresses"),
            ("box", "boxes"),
            ("batch", "batches"),
            ("mesh", "meshes"),
            ("policy", "policies"),
            ("gateway", "gateways"),
            ("replicationcontroller", "replicationcontrollers"),
        ];
        for (one, many) in words {
            assert_eq!(plural(one), many);
        }
    }

    #[test]
    fn names_that_keys_or_commands_cannot_hold_are_refused() {
        let long = "a".repeat(64);
        for group in ["", "a/b", "Example.dev", ".a", "a.", &long] {
            assert!(check_group(group).is_err(), "{group}");
        }
        assert!(check_group("example.dev").is_ok() && check_group("4chan").is_ok());
        for word in ["", "a.b", "a_b", "A", "1a", "-a", "a-", "a/b", &long] {
            assert!(check_word(word).is_err(), "{word}");
        }
        assert!(check_word("po").is_ok() && check_word("pod-clusters2").is_ok());
        for kind in ["", "site", "Web_Site", "Web Site", "1Site", "Élan"] {
            assert!(check_kind(kind).is_err(), "{kind}");
        }
        assert!(check_kind("Site").is_ok() && check_kind("DNSZone2").is_ok());
    }

    #[test]
    fn versions_have_a_number_and_perhaps_a_stage() {
        for version in ["v1", "v12", "v1alpha1", "v2beta11"] {
            assert!(check_version(version).is_ok(), "{version}");
        }
        for version in [
            "", "v", "1", "v0", "v1.0", "v1rc1", "v1alpha", "valpha1", "V1", "v01",
        ] {
            assert!(check_version(version).is_err(), "{version}");
        }
    }

    #[test]
    fn column_paths_begin_in_one_of_the_three_parts() {
        for path in [".spec", ".status.readyReplicas", ".metadata.labels.app"] {
            assert!(check_column_path(path).is_ok(), "{path}");
        }
        for path in [
            "",
            ".",
            "spec.x",
            ".x",
            ".spec..x",
            ".spec.",
            ".spec.a[0]",
            "..spec",
        ] {
            assert!(check_column_path(path).is_err(), "{path}");
        }
    }
}
