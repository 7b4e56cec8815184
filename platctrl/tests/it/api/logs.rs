use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use super::{Api, PODS, pod};

async fn with_pod() -> (Api, PathBuf) {
    let api = Api::start().await;
    api.post(PODS, &pod("a", "web1")).await.done();
    let dir = api.dir.path().join("pods/default.a/log");
    fs::create_dir_all(&dir).unwrap();
    (api, dir)
}

fn append(dir: &std::path::Path, text: &str) {
    let mut log = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join("web.log"))
        .unwrap();
    log.write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_log_is_all_its_files_from_the_oldest_line_on_or_the_last_lines() {
    let (api, dir) = with_pod().await;
    fs::write(dir.join("web.log.2"), "1\n2\n").unwrap();
    fs::write(dir.join("web.log.1"), "3\n4\n").unwrap();
    fs::write(dir.join("web.log"), "5\n6").unwrap();
    let log = format!("{PODS}/a/log");
    assert_eq!(api.get(&log).await.text(), "1\n2\n3\n4\n5\n6");
    for (lines, expected) in [
        (0, ""),
        (1, "6"),
        (2, "5\n6"),
        (3, "4\n5\n6"),
        (9, "1\n2\n3\n4\n5\n6"),
    ] {
        let answer = api.get(&format!("{log}?tailLines={lines}")).await;
        assert_eq!(answer.text(), expected, "{lines}");
    }
    append(&dir, "\n");
    assert_eq!(
        api.get(&format!("{log}?tailLines=2")).await.text(),
        "5\n6\n"
    );
    let previous = api.get(&format!("{log}?previous=true&tailLines=1")).await;
    assert_eq!(previous.text(), "6\n");
    assert!(
        previous.header("warning").contains("one stream"),
        "{:?}",
        previous.headers
    );
    api.get(&format!("{log}?tailLines=x"))
        .await
        .fails(400, "BadRequest");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::open(dir.join("web.log.2"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    assert_eq!(
        api.get(&format!("{log}?sinceSeconds=60")).await.text(),
        "3\n4\n5\n6\n"
    );
}

#[tokio::test]
async fn a_followed_log_goes_on_across_rotation_without_losing_or_repeating_a_line() {
    let (api, dir) = with_pod().await;
    append(&dir, "old\n");
    let mut lines = api
        .stream(&format!("{PODS}/a/log?follow=true&tailLines=1"))
        .await;
    assert_eq!(lines.line().await.unwrap(), "old");
    let mut expected = Vec::new();
    for file in 0..3 {
        for number in 0..5 {
            let line = format!("{file}-{number}");
            append(&dir, &format!("{line}\n"));
            expected.push(line);
        }
        for older in (0..4).rev() {
            let name = |number: u32| match number {
                0 => dir.join("web.log"),
                number => dir.join(format!("web.log.{number}")),
            };
            let _ = fs::rename(name(older), name(older + 1));
        }
    }
    append(&dir, "last\n");
    expected.push("last".to_owned());
    for line in expected {
        assert_eq!(lines.line().await.unwrap(), line);
    }
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(lines.line().await, None, "it ends with the pod's home");
}

#[tokio::test]
async fn following_ends_when_the_client_goes_away() {
    let api = Api::with(|config| config.max_follows = 1).await;
    api.post(PODS, &pod("a", "web1")).await.done();
    let dir = api.dir.path().join("pods/default.a/log");
    fs::create_dir_all(&dir).unwrap();
    append(&dir, "x\n");
    let path = format!("{PODS}/a/log?follow=true");
    let mut first = api.stream(&path).await;
    assert_eq!(first.line().await.unwrap(), "x");
    api.get(&path).await.fails(429, "TooManyRequests");
    drop(first);
    let freed = async {
        let mut code = 429;
        while code == 429 {
            let request = http::Request::get(&path).header("host", "x");
            let request = request.body(http_body_util::Full::default()).unwrap();
            code = api.send(request).await.status().as_u16();
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), freed)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_launchable_is_named_where_there_are_several() {
    let (api, dir) = with_pod().await;
    let log = format!("{PODS}/a/log");
    let message = api.get(&log).await.fails(400, "BadRequest");
    assert!(message.contains("no log yet"), "{message}");
    fs::write(dir.join("web:a.log"), "one\n").unwrap();
    fs::write(dir.join("web:b.log"), "two\n").unwrap();
    let message = api.get(&log).await.fails(400, "BadRequest");
    assert!(message.contains("web/a, web/b"), "{message}");
    assert_eq!(
        api.get(&format!("{log}?launchable=web%2Fb")).await.text(),
        "two\n"
    );
    assert_eq!(
        api.get(&format!("{log}?container=web/a")).await.text(),
        "one\n"
    );
    for wrong in ["c", "..%2F..%2Fx", "web:a.log"] {
        api.get(&format!("{log}?launchable={wrong}"))
            .await
            .fails(400, "BadRequest");
    }
}

#[tokio::test]
async fn links_in_the_place_of_logs_are_not_followed() {
    let (api, dir) = with_pod().await;
    let secret = api.dir.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    std::os::unix::fs::symlink(&secret, dir.join("web.log")).unwrap();
    let answer = api.get(&format!("{PODS}/a/log")).await;
    let message = answer.fails(500, "InternalError");
    assert!(message.contains("log of web"), "{message}");
    fs::remove_dir_all(&dir).unwrap();
    std::os::unix::fs::symlink(api.dir.path(), &dir).unwrap();
    let answer = api.get(&format!("{PODS}/a/log")).await;
    assert!(!answer.code.is_success(), "{}", answer.text());
}

#[tokio::test]
async fn the_log_of_a_pod_elsewhere_is_told_where_to_find() {
    let api = Api::start().await;
    api.post(PODS, &pod("far", "web2")).await.done();
    let message = api
        .get(&format!("{PODS}/far/log"))
        .await
        .fails(503, "ServiceUnavailable");
    assert!(
        message.contains("node web2") && message.contains("platctrl node admit web2"),
        "{message}"
    );
    api.get(&format!("{PODS}/none/log"))
        .await
        .fails(404, "NotFound");
}

#[tokio::test]
async fn a_command_is_refused_where_its_streams_cannot_go() {
    let (api, _) = with_pod().await;
    let exec = format!("{PODS}/a/exec?command=true");
    let message = api
        .post(&exec, &serde_json::json!({}))
        .await
        .fails(400, "BadRequest");
    assert!(message.contains("Upgrade: platctrl-exec"), "{message}");
    api.get(&exec).await.fails(405, "MethodNotAllowed");
    api.post(&format!("{PODS}/none/exec"), &serde_json::json!({}))
        .await
        .fails(404, "NotFound");
    // A stream is asked for with an upgrade, too, by an agent that has begun.
    let message = api.get("/stream/nodes/web1").await.fails(400, "BadRequest");
    assert!(message.contains("platctrl-instance"), "{message}");
    api.get("/stream/nodes/..%2Fx")
        .await
        .fails(400, "BadRequest");
}
