//! What an agent finds on its disk.

use platctrl_agent::{Found, PodName, PodRecord};

use super::Target;

pub(super) const POD_RECORD: Target = Target {
    name: "pod_record",
    run: pod_record,
    longest: 8192,
    words: &[
        "\"name\":\"default/hello\"",
        "\"position\":",
        "\"current\":{",
        "\"last\":{",
        "\"exits\":[",
        "\"seenExits\":{",
        "\"draining\":{",
        "\"health\":{",
        "null",
        "18446744073709551615",
        "..",
    ],
};

fn pod_record(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input)
        && let Some(name) = PodName::from_directory(text)
    {
        assert_eq!(name.directory(), text);
        assert!(
            !text.contains('/') && text != "." && text != "..",
            "{text:?}"
        );
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("pod.json");
    std::fs::write(&path, input).expect("a file");
    let looked = PodRecord::look(&path);
    let name = PodName::new("default", "hello").expect("a constant that is a valid name");
    match PodRecord::read(&name, &path, &[]).expect("the file system answers") {
        Found::Whole(record) => {
            assert_eq!(record.name, name);
            // What is written is read as the same, fields of newer agents included.
            record.write(&path, false).expect("the file system answers");
            assert_eq!(PodRecord::look(&path), Some(*record.clone()));
            assert_eq!(looked, Some(*record));
        }
        Found::Damaged { record, reason } => {
            assert!(!reason.is_empty());
            assert_eq!(*record, PodRecord::new(name));
            assert!(path.with_extension("json.damaged").exists(), "it is kept");
        }
        Found::Nothing => panic!("there is a file"),
    }
}
