//! Bad input: what is wrong is told with the endpoint and the cause, and asked for again only
//! where that can help.

use std::time::{Duration, Instant};

use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity::{self, IdentityError};
use platctrl_framework::store::{
    Key, ListRequest, Policy, Prefix, Right, Store, StoreError, Transaction, WatchEvent,
};
use platctrl_store_etcd::{ConnectError, Credentials, EtcdStore, Location, Options, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use futures::StreamExt;

use crate::server::{Cluster, Plan, Release, root};
use platctrl_test_support::certificates::Authority;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn put(name: &str, value: impl Into<bytes::Bytes>) -> Transaction {
    Transaction::new().put(key(name), value)
}

/// For what is asked again until the deadline.
fn quick() -> Options {
    let mut options = Options::default();
    options.deadline = Duration::from_secs(2);
    options.connect_timeout = Duration::from_secs(1);
    options
}

/// Connects where that cannot work, and returns the error, which must name the endpoint.
async fn refused(location: &Location, options: Options) -> ConnectError {
    let error = EtcdStore::connect(location.clone(), options).await;
    let error = error.expect_err("this cannot work");
    let endpoint = location.members().next().unwrap();
    assert!(error.to_string().contains(&endpoint), "{error}");
    error
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_tried_until_the_deadline() {
    let location: Location = format!("etcd://{}:1/r", crate::server::address())
        .parse()
        .unwrap();
    let began = Instant::now();
    let error = refused(&location, quick()).await;
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert!(matches!(error, ConnectError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    // A store that is opened without asking tells the same when it is used.
    let store = EtcdStore::open(location, quick()).unwrap();
    let error = store.commit(put("o/a", "1")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_port_of_another_service_is_told() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location: Location = format!("etcd://{}/r", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let web = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let _ = client.read(&mut [0; 1024]).await;
            let answer = "HTTP/1.1 400 Bad Request\r\ncontent-length: 4\r\n\r\nwhat";
            let _ = client.write_all(answer.as_bytes()).await;
        }
    });
    let error = refused(&location, quick()).await;
    assert!(error.to_string().contains("is it an etcd"), "{error}");
    web.abort();
}

#[tokio::test]
async fn tls_to_a_plain_port_and_the_reverse_are_told() {
    let plain = Cluster::start(Plan::one(Release::V3_5));
    let mut options = quick();
    options.tls = Some(Tls::new(plain.authority.write(plain.dir())));
    let error = refused(&plain.location("r"), options).await;
    let said = error.to_string();
    // It depends on whether the server says something before it hangs up.
    let expected = ["not to speak TLS", "does the port speak TLS?"];
    assert!(expected.iter().any(|words| said.contains(words)), "{said}");

    let secure = Cluster::start(Plan::one(Release::V3_5).with_tls());
    let error = refused(&secure.location("r"), quick()).await;
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[tokio::test]
async fn certificates_that_cannot_be_trusted_are_told_at_once() {
    let cluster = Cluster::start(Plan::one(Release::V3_5).with_tls());
    let location = cluster.location("r");
    let tls = cluster.options().tls.unwrap();
    let (certificate, key) = tls.client_certificate.clone().unwrap();
    let with = |tls: Tls| {
        let mut options = Options::default();
        options.tls = Some(tls);
        options
    };
    EtcdStore::connect(location.clone(), with(tls.clone()))
        .await
        .unwrap();

    // Another authority.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Authority::new("somebody else's");
    let foreign =
        Tls::new(other.write(elsewhere.path())).with_client_certificate(&certificate, &key);
    let error = refused(&location, with(foreign)).await;
    assert!(
        matches!(error, ConnectError::Misconfigured { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");

    // A client's certificate of another authority, one that has expired, and none.
    let (certificate, key) = other.issue("", vec![]).write(elsewhere.path(), "client");
    let error = refused(
        &location,
        with(Tls::new(&tls.ca).with_client_certificate(certificate, key)),
    )
    .await;
    assert!(error.to_string().contains("certificate"), "{error}");
    let names = vec!["client.test".to_owned()];
    let expired = cluster.authority.issue_expired("", names);
    let (certificate, key) = expired.write(elsewhere.path(), "expired");
    let error = refused(
        &location,
        with(Tls::new(&tls.ca).with_client_certificate(certificate, key)),
    )
    .await;
    assert!(error.to_string().contains("certificate"), "{error}");
    let error = refused(&location, with(Tls::new(&tls.ca))).await;
    assert!(error.to_string().contains("certificate"), "{error}");

    // The server's has expired: it reads its files at every handshake.
    let names = vec![cluster.members[0].address.clone()];
    let own = cluster.dir().join("m0");
    cluster
        .authority
        .issue_expired("server", names)
        .write(&own, "server");
    let error = refused(&location, with(tls.clone())).await;
    assert!(
        matches!(error, ConnectError::Misconfigured { .. }),
        "{error}"
    );
    assert!(
        error.to_string().to_lowercase().contains("expired"),
        "{error}"
    );

    // Files that are missing, or no certificates.
    let missing = Tls::new(elsewhere.path().join("missing.pem"));
    let error = EtcdStore::open(location.clone(), with(missing)).unwrap_err();
    assert!(error.to_string().contains("missing.pem"), "{error}");
    std::fs::write(elsewhere.path().join("text"), "text").unwrap();
    let text = Tls::new(elsewhere.path().join("text"));
    let error = EtcdStore::open(location, with(text)).unwrap_err();
    assert!(error.to_string().contains("no certificates"), "{error}");
}

#[tokio::test]
async fn a_password_is_wrong_from_the_start_or_becomes_so() {
    let cluster = Cluster::start(Plan::one(Release::V3_5).with_auth());
    let location = cluster.location("r");
    cluster.ctl(&["role", "add", "writer"]);
    cluster.ctl(&[
        "role",
        "grant-permission",
        "writer",
        "--prefix=true",
        "readwrite",
        "r/",
    ]);
    cluster.ctl(&["user", "add", "ann:first"]);
    cluster.ctl(&["user", "grant-role", "ann", "writer"]);
    let with = |password: &str| {
        let mut options = Options::default();
        options.credentials = Some(Credentials::new("ann", password));
        options
    };
    let began = Instant::now();
    let error = refused(&location, with("wrong")).await;
    assert!(matches!(error, ConnectError::Denied { .. }), "{error}");
    assert!(error.to_string().contains("`ann`"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2), "it was repeated");
    let error = refused(&location, Options::default()).await;
    assert!(matches!(error, ConnectError::Denied { .. }), "{error}");
    assert!(error.to_string().contains("asks for a user"), "{error}");

    // The same password set again ends every token, and changes no right: nobody notices.
    let store = EtcdStore::connect(location.clone(), with("first"))
        .await
        .unwrap();
    let revision = store.commit(put("o/a", "1")).await.unwrap();
    let mut watch = store.watch(Prefix::new("o/").unwrap(), revision);
    let passwd = |password: &str| {
        use std::process::{Command, Stdio};
        let mut child = Command::new(cluster.plan.release.programs().join("etcdctl"))
            .env("ETCDCTL_API", "3")
            .args([
                "--user=root:hush",
                "user",
                "passwd",
                "ann",
                "--interactive=false",
            ])
            .arg(format!("--endpoints={}", cluster.members[0].endpoint()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(
            child.stdin.as_mut().unwrap(),
            format!("{password}\n").as_bytes(),
        )
        .unwrap();
        assert!(child.wait().unwrap().success());
    };
    passwd("first");
    let revision = store.commit(put("o/a", "2")).await.unwrap();
    // A watch that began before is told, and one that begins now on the same stream as well.
    let mut later = store.watch(Prefix::new("o/").unwrap(), revision);
    let last = store.commit(put("o/b", "1")).await.unwrap();
    for watch in [&mut watch, &mut later] {
        let told = async {
            loop {
                match watch.next().await.unwrap().unwrap() {
                    WatchEvent::Changes { revision, .. } if revision == last => return,
                    WatchEvent::Reset { reason } => panic!("{reason}"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), told)
            .await
            .unwrap();
    }
    // A right that is taken away is denied, and is not asked for again.
    cluster.ctl(&["user", "revoke-role", "ann", "writer"]);
    let began = Instant::now();
    let error = store.commit(put("o/a", "3")).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2), "it was repeated");
    let mut denied = store.watch(Prefix::new("o/").unwrap(), last);
    let item = tokio::time::timeout(Duration::from_secs(10), denied.next()).await;
    let item = item.unwrap().unwrap();
    assert!(matches!(item, Err(StoreError::Denied { .. })), "{item:?}");
    assert!(denied.next().await.is_none());
    cluster.ctl(&["user", "grant-role", "ann", "writer"]);
    store.commit(put("o/a", "4")).await.unwrap();
    // The password is another one now.
    passwd("second");
    let error = store.commit(put("o/a", "5")).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    assert!(error.to_string().contains("`ann`"), "{error}");
}

#[tokio::test]
async fn a_user_reads_and_writes_its_own_ranges_only() {
    let cluster = Cluster::start(Plan::one(Release::V3_5).with_auth());
    cluster.ctl(&["role", "add", "node"]);
    for (right, prefix) in [
        ("read", "r/o/intent/pods/n1/"),
        ("readwrite", "r/o/reality/pods/n1/"),
        ("read", "r/x/anchor"),
    ] {
        cluster.ctl(&[
            "role",
            "grant-permission",
            "node",
            "--prefix=true",
            right,
            prefix,
        ]);
    }
    cluster.ctl(&["user", "add", "n1:n1"]);
    cluster.ctl(&["user", "grant-role", "n1", "node"]);
    let mut options = Options::default();
    options.credentials = Some(Credentials::new("n1", "n1"));
    let store = EtcdStore::connect(cluster.location("r"), options)
        .await
        .unwrap();
    let list = |prefix: &str| ListRequest::new(Prefix::new(prefix).unwrap());
    store.list(&list("o/intent/pods/n1/")).await.unwrap();
    let at = store.commit(put("o/reality/pods/n1/a", "1")).await.unwrap();
    for prefix in ["o/intent/pods/n10/", "o/intent/pods/", ""] {
        let outcome = store.list(&list(prefix)).await;
        assert!(
            matches!(outcome, Err(StoreError::Denied { .. })),
            "{prefix}: {outcome:?}"
        );
        let mut watch = store.watch(Prefix::new(prefix).unwrap(), at);
        let item = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
        let item = item.unwrap().unwrap();
        assert!(
            matches!(item, Err(StoreError::Denied { .. })),
            "{prefix}: {item:?}"
        );
    }
    let own = || put("o/reality/pods/n1/a", "2");
    for transaction in [
        put("o/intent/pods/n1/a", "1"),
        own().put(key("o/reality/pods/n10/a"), "1"),
        own().require_absent(key("o/intent/pods/n2/a")),
        Transaction::new().delete(key("o/intent/pods/n1/a")),
    ] {
        let outcome = store.commit(transaction).await;
        assert!(
            matches!(outcome, Err(StoreError::Denied { .. })),
            "{outcome:?}"
        );
    }
    // What was denied to one watch ends no other.
    let mut watch = store.watch(Prefix::new("o/reality/pods/n1/").unwrap(), at);
    let last = store.commit(own()).await.unwrap();
    let told = async {
        loop {
            match watch.next().await.unwrap().unwrap() {
                WatchEvent::Changes { revision, .. } if revision == last => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told)
        .await
        .unwrap();
    // This release has holes in its access control, and says so.
    let server = store.server().unwrap();
    assert!(
        server
            .warnings
            .iter()
            .any(|warning| warning.contains("3.5.30")),
        "{server:?}"
    );
}

#[tokio::test]
async fn a_root_of_nobody_of_something_else_or_of_a_newer_format_is_told() {
    let cluster = Cluster::start(Plan::one(Release::V3_5));
    let environment = Environment::system();
    let store = cluster.store("r").await;
    let outcome = identity::open(&store).await;
    assert!(
        matches!(outcome, Err(IdentityError::Uninitialised)),
        "{outcome:?}"
    );

    // Something else's keys, of which none could be ours.
    cluster.ctl(&["put", "r/Some Config", "1"]);
    cluster.ctl(&["put", "r/registry/\u{e9}", "1"]);
    cluster.ctl(&["put", "r0", "a neighbour"]);
    let page = store.list(&ListRequest::new(Prefix::all())).await.unwrap();
    assert!(page.records.is_empty() && !page.more, "{page:?}");
    cluster.ctl(&["put", "r/registry/services", "1"]);
    let outcome = identity::initialise(&store, &environment).await;
    assert!(
        matches!(outcome, Err(IdentityError::NotEmpty { .. })),
        "{outcome:?}"
    );

    // What is written here is readable with etcdctl.
    let own = cluster.store(&root()).await;
    let anchor = identity::initialise(&own, &environment).await.unwrap();
    let shown = cluster.ctl(&["get", &format!("{}/x/anchor", own.location().root())]);
    assert!(shown.contains(&anchor.store_id), "{shown}");

    let newer = r#"{"writeVersion":99,"minReader":99}"#;
    cluster.ctl(&["put", &format!("{}/x/format", own.location().root()), newer]);
    let outcome = identity::open(&own).await;
    assert!(
        matches!(outcome, Err(IdentityError::TooNew { .. })),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_server_with_smaller_limits_is_told_as_too_large() {
    let plan =
        Plan::one(Release::V3_5).with_arguments(&["--max-txn-ops=8", "--max-request-bytes=20000"]);
    let cluster = Cluster::start(plan);
    let store = cluster.store("r").await;
    let mut many = Transaction::new();
    for n in 0..9 {
        many = many.put(key(&format!("o/{n}")), "x");
    }
    for transaction in [many, put("o/a", vec![b'x'; 30_000])] {
        let error = store.commit(transaction).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
        assert!(
            error.to_string().contains(&cluster.members[0].endpoint()),
            "{error}"
        );
    }
    assert!(
        store
            .list(&ListRequest::new(Prefix::all()))
            .await
            .unwrap()
            .records
            .is_empty()
    );
}

#[tokio::test]
async fn records_larger_than_an_answer_can_be_are_listed_in_smaller_pages() {
    let cluster = Cluster::start(Plan::one(Release::V3_5));
    let store = cluster.store("r").await;
    let value = vec![b'x'; 1_000_000];
    for n in 0..40 {
        store
            .commit(put(&format!("o/{n:02}"), value.clone()))
            .await
            .unwrap();
    }
    let mut request = ListRequest::new(Prefix::new("o/").unwrap());
    let mut seen = 0;
    loop {
        let page = store.list(&request).await.unwrap();
        let bytes: usize = page.records.iter().map(|record| record.value.len()).sum();
        assert!(bytes <= 32 << 20, "{bytes} bytes at once");
        seen += page.records.len();
        if !page.more {
            break;
        }
        request.at = Some(page.revision);
        request.after = page.records.last().map(|record| record.key.clone());
    }
    assert_eq!(seen, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_works_while_users_are_made_is_denied_nothing() {
    let cluster = Cluster::start(Plan::one(Release::V3_5).with_auth());
    let admin = std::sync::Arc::new(cluster.store("r").await);
    let rights = |name: &str| {
        let ranges = (0..12).map(|n| Prefix::new(format!("o/{name}/{n}/")).unwrap());
        Policy::new(name, ranges.map(Right::write))
    };
    let control = admin.access_control();
    control.apply(&rights("ann")).await.unwrap();
    control.add_user("ann", Some("first")).await.unwrap();
    control.grant_role("ann", "ann").await.unwrap();
    let mut options = Options::default();
    options.credentials = Some(Credentials::new("ann", "first"));
    let store = EtcdStore::connect(cluster.location("r"), options).await;
    let store = std::sync::Arc::new(store.unwrap());
    // Each grant changes the revision that requests under way were let in with.
    let making = tokio::spawn({
        let admin = std::sync::Arc::clone(&admin);
        async move {
            let control = admin.access_control();
            for n in 0..40 {
                control.apply(&rights(&format!("other{n}"))).await.unwrap();
            }
        }
    });
    let mut writers = tokio::task::JoinSet::new();
    let made = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for n in 0..8 {
        let (store, made) = (std::sync::Arc::clone(&store), std::sync::Arc::clone(&made));
        writers.spawn(async move {
            let mut commits = 0_u32;
            while !made.load(std::sync::atomic::Ordering::SeqCst) {
                let key = format!("o/ann/{n}/a");
                store.commit(put(&key, "1")).await.unwrap();
                commits += 1;
            }
            commits
        });
    }
    making.await.unwrap();
    made.store(true, std::sync::atomic::Ordering::SeqCst);
    while let Some(commits) = writers.join_next().await {
        assert!(commits.unwrap() > 0);
    }
}
