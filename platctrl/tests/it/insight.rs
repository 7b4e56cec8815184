//! What processes tell of themselves: metrics, status, and why an object is where it is.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::rig::{Rig, eventually};

/// The answer of a socket of this machine, with its head; None while nobody answers.
pub(crate) fn asked(socket: &Path, path: &str) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn up_tells_what_it_does_and_why_an_object_is_where_it_is() {
    let rig = Rig::running();
    rig.manifest(0, |text| {
        text.replace("hello.tar.gz", "https://artifacts.example/hello.tar.gz")
    });
    let digest = format!(
        "stopTimeout: 5s\n          digest: sha256:{}",
        "9f2c".repeat(16)
    );
    let manifest = std::fs::read_to_string(rig.path("hello.yaml")).unwrap();
    rig.write("hello.yaml", manifest.replace("stopTimeout: 5s", &digest));
    rig.cli(&["apply", "-f", "hello.yaml"]).ok();

    let socket = rig.data_dir().join("platctrl.sock");
    let metrics = eventually("metrics of controllers", || {
        let text = asked(&socket, "/metrics")?;
        text.contains("controller=\"").then_some(text)
    });
    for line in [
        "platctrl_http_requests_total{method=\"GET\",code=\"200\"}",
        "platctrl_http_seconds_bucket{le=\"+Inf\"}",
        "platctrl_watches ",
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert_eq!(metrics.matches("# EOF").count(), 1);
    let status = asked(&socket, "/statusz").unwrap();
    for part in ["server", "mirror for watches", "runtime controllers"] {
        assert!(status.contains(part), "{part} is not in {status}");
    }
    let described = eventually("an explanation", || {
        let text = rig.cli(&["describe", "rc/hello"]).ok();
        text.contains("\nWhy:\n").then_some(text)
    });
    assert!(described.contains("replication"), "{described}");
    let missing = asked(
        &socket,
        "/why/platctrl.dev/v1/namespaces/default/pods/nothing",
    )
    .unwrap();
    assert!(missing.starts_with("HTTP/1.1 404 "), "{missing}");
}
