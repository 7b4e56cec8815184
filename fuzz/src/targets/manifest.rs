//! Manifests as people write them, and as others write them for people.

use super::{Target, object};

pub(super) const MANIFEST: Target = Target {
    name: "manifest",
    run: manifest,
    longest: 8192,
    words: &[
        "---\n",
        "kind: List\nitems:\n",
        "apiVersion: platctrl.dev/v1\n",
        "metadata:\n  name: ",
        "spec:\n  ",
        "&a ",
        "*a",
        "<<: *a",
        "!!binary ",
        "!!int ",
        "? ",
        "|\n  ",
        ">-\n  ",
        "[[[[",
        "{{{{",
        "- - - - ",
        ".nan",
        "0x7f",
        "0o17",
        "\u{feff}",
        "\u{2028}",
        "%YAML 1.2\n",
    ],
};

fn manifest(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match platctrl::fuzzing::manifest(text) {
        Ok(documents) => documents.iter().for_each(object::check),
        Err(problem) => {
            assert!(
                problem.starts_with("fuzz.yaml:"),
                "names no line: {problem:?}"
            );
            assert!(
                !problem.contains(['\x1b', '\0']),
                "not for a terminal: {problem:?}"
            );
        }
    }
}
