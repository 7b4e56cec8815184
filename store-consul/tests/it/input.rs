//! Wrong addresses, wrong certificates, wrong answers, wrong roots.

use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity::{self, IdentityError};
use platctrl_framework::store::{Key, Store, StoreError, Transaction, WatchEvent};
use platctrl_store_consul::{Address, ConsulStore, OpenError, Options, TlsOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::helpers::{key, list, next_news, prefix, put, run, value};
use crate::server::{Cluster, Plan, Server, root};

async fn refusal(address: &Address, options: Options) -> OpenError {
    let opened = ConsulStore::open(address, options, Environment::system());
    let opened = tokio::time::timeout(Duration::from_secs(20), opened);
    opened.await.expect("an answer comes in time").unwrap_err()
}

/// The error names the store and the cause, and is worth repeating or not.
fn must_say(error: &OpenError, address: &Address, cause: &str, transient: bool) {
    let text = error.to_string();
    assert!(text.contains(&address.to_string()), "{text}");
    assert!(text.contains(cause), "`{cause}` is not in: {text}");
    let again = error.store_error().is_some_and(StoreError::is_transient);
    assert_eq!(again, transient, "{text}");
}

#[test]
fn wrong_addresses_and_certificates_are_named_with_their_cause() {
    let cluster = Cluster::start(Plan::one().with_tls());
    run(async {
        let tls = cluster.address(0, "test");
        let at = |port: u16| -> Address {
            format!("consul://{}:{port}/test", tls.host())
                .parse()
                .unwrap()
        };
        // The right one, before what is wrong.
        cluster.store("test").await;
        let nobody = at(1);
        let error = refusal(&nobody, Options::default()).await;
        must_say(&error, &nobody, "refused", true);
        let error = refusal(&at(8500), cluster.options()).await;
        must_say(&error, &at(8500), "does not speak TLS", false);
        let error = refusal(&tls, Options::default()).await;
        must_say(&error, &tls, "speaks TLS only", false);

        let mut options = cluster.options();
        let other = platctrl_test_support::certificates::Authority::new("another authority");
        let dir = tempfile::tempdir().unwrap();
        options.tls.as_mut().unwrap().ca_file = other.write(dir.path());
        let error = refusal(&tls, options).await;
        must_say(&error, &tls, "none of the authorities", false);

        let mut options = cluster.options();
        options.tls.as_mut().unwrap().server_name = Some("other.test".to_owned());
        let error = refusal(&tls, options).await;
        must_say(&error, &tls, "another name", false);

        let mut options = cluster.options();
        options.tls.as_mut().unwrap().client = None;
        let error = refusal(&tls, options).await;
        must_say(&error, &tls, "TLS alert", false);

        let mut options = cluster.options();
        options.tls = Some(TlsOptions::with_ca(dir.path().join("none.pem")));
        let error = refusal(&tls, options).await;
        must_say(&error, &tls, "none.pem", false);

        for (datacenter, cause) in [
            ("dc9", "No path to datacenter"),
            ("a&b", "datacenter's name"),
        ] {
            let mut options = cluster.options();
            options.datacenter = Some(datacenter.to_owned());
            let error = refusal(&tls, options).await;
            must_say(&error, &tls, cause, false);
        }
    });
}

#[test]
fn an_expired_certificate_is_refused() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let authority = platctrl_test_support::certificates::Authority::new("the authority");
        let pair = authority.issue_expired("server", vec!["127.0.0.1".to_owned()]);
        let (certificate, key) = pair.write(dir.path(), "server");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(serve_tls(listener, certificate, key));
        let address: Address = format!("consul://127.0.0.1:{port}/test").parse().unwrap();
        let mut options = Options::default();
        options.tls = Some(TlsOptions::with_ca(authority.write(dir.path())));
        let error = refusal(&address, options).await;
        must_say(&error, &address, "expired", false);
        server.abort();
    });
}

async fn serve_tls(
    listener: TcpListener,
    certificate: std::path::PathBuf,
    key: std::path::PathBuf,
) {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(certificate).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    while let Ok((stream, _)) = listener.accept().await {
        let _ = acceptor.accept(stream).await;
    }
}

/// Answers every request on every connection with the same bytes.
async fn serve(listener: TcpListener, answer: String) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let answer = answer.clone();
        tokio::spawn(async move {
            let mut request = vec![0; 64 << 10];
            while let Ok(1..) = stream.read(&mut request).await {
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[test]
fn answers_that_are_none_of_consuls_are_errors_and_never_an_empty_store() {
    run(async {
        let with_body = |head: &str, body: &str| {
            format!(
                "HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        for (answer, cause, transient) in [
            (
                with_body("502 Bad Gateway", "<html>nginx</html>"),
                "502",
                true,
            ),
            (
                with_body("500 Internal Server Error", "No cluster leader"),
                "No cluster leader",
                true,
            ),
            (with_body("429 Too Many Requests", "slow down"), "429", true),
            (
                with_body("200 OK", "<html>hello</html>"),
                "not one of Consul",
                true,
            ),
            (with_body("200 OK", ""), "not one of Consul", true),
            (
                with_body("200 OK", "{\"Results\":[{\"KV\":{\"Ke"),
                "not one of Consul",
                true,
            ),
            (
                with_body("200 OK", "{\"Errors\":[{\"OpIndex\":0,\"What\":\"x\"}]}"),
                "disagree",
                true,
            ),
            (
                with_body("301 Moved\r\nLocation: http://other/", ""),
                "redirect",
                false,
            ),
            (
                with_body("404 Not Found", "nothing here"),
                "is this Consul",
                false,
            ),
            (with_body("403 Forbidden", "ACL not found"), "denies", false),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort".to_owned(),
                "Consul",
                true,
            ),
            ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), "reading", true),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = tokio::spawn(serve(listener, answer.clone()));
            let address: Address = format!("consul://127.0.0.1:{port}/test").parse().unwrap();
            let mut options = Options::default();
            options.timeout = Duration::from_secs(1);
            let error = refusal(&address, options).await;
            let text = error.to_string();
            assert!(text.contains(&address.to_string()), "{text}");
            let cause = if cause == "reading" || cause == "Consul" {
                "a read"
            } else {
                cause
            };
            assert!(
                text.contains(cause),
                "{answer}: `{cause}` is not in: {text}"
            );
            let again = error.store_error().is_some_and(StoreError::is_transient);
            assert_eq!(again, transient, "{answer}: {text}");
            server.abort();
        }
    });
}

#[test]
fn what_others_keep_in_a_root_is_left_alone_and_set_aside() {
    let cluster = Cluster::start(Plan::one());
    run(async {
        let root = root();
        let server = cluster.any();
        let environment = Environment::system();
        let store = cluster.store(&root).await;
        // Nobody's.
        let error = identity::open(&store).await.unwrap_err();
        assert!(matches!(error, IdentityError::Uninitialised), "{error}");
        // Somebody else's.
        server.must("PUT", &format!("/v1/kv/{root}/their/config"), "precious");
        let error = identity::initialise(&store, &environment)
            .await
            .unwrap_err();
        assert!(matches!(error, IdentityError::NotEmpty { .. }), "{error}");
        assert!(error.to_string().contains("their/config"), "{error}");
        server.must("DELETE", &format!("/v1/kv/{root}/their/config"), "");
        identity::initialise(&store, &environment).await.unwrap();

        // Names that none of ours has are left out of lists; what a person writes is read as
        // it is, and what we write is plain.
        server.must("PUT", &format!("/v1/kv/{root}/o/Their%20Key"), "x");
        server.must(
            "PUT",
            &format!("/v1/kv/{root}/o/theirs?flags=42"),
            "by hand",
        );
        put(&store, "o/ours", "{\"kind\":\"Pod\"}").await;
        assert_eq!(
            cluster
                .consul(&["kv", "get", &format!("{root}/o/ours")])
                .trim_end(),
            "{\"kind\":\"Pod\"}"
        );
        let (records, revision) = list(&store, "o/").await.unwrap();
        let names: Vec<&str> = records.iter().map(|record| record.key.as_str()).collect();
        assert_eq!(names, ["o/.anchor", "o/ours", "o/theirs"]);
        assert_eq!(
            (&records[2].value[..], records[2].lease),
            (&b"by hand"[..], None)
        );
        assert!(revision >= records[2].modified);

        // The store's own keys are nobody's to write.
        for name in ["x/gen1/now", "x/gen/00/o/ours", "o/a/.gone"] {
            let outcome = store.commit(Transaction::new().put(key(name), "1")).await;
            assert!(
                matches!(outcome, Err(StoreError::Invalid { .. })),
                "{name}: {outcome:?}"
            );
        }

        // A newer format, and another store under a client's feet.
        put(&store, "x/format", r#"{"writeVersion":9,"minReader":9}"#).await;
        let error = identity::open(&store).await.unwrap_err();
        assert!(
            matches!(error, IdentityError::TooNew { needed: 9, .. }),
            "{error}"
        );
        let anchor = value(&store, "x/anchor").await.unwrap();
        let other = anchor.replacen("\"storeId\":\"", "\"storeId\":\"f", 1);
        server.must("PUT", &format!("/v1/kv/{root}/x/anchor"), &other);
        let outcome = store.get(&[key("o/ours")]).await;
        assert!(
            matches!(&outcome, Err(StoreError::Unavailable { reason, .. }) if reason.contains("another store")),
            "{outcome:?}"
        );
        let outcome = store
            .commit(Transaction::new().put(key("o/ours"), "2"))
            .await;
        assert!(
            matches!(outcome, Err(StoreError::Unavailable { .. })),
            "{outcome:?}"
        );
        server.must("PUT", &format!("/v1/kv/{root}/x/anchor"), &anchor);
        put(&store, "o/ours", "3").await;
        // A wiped root is no empty fleet.
        server.must("DELETE", &format!("/v1/kv/{root}/?recurse"), "");
        let outcome = list(&store, "o/").await;
        assert!(
            matches!(&outcome, Err(StoreError::Unavailable { reason, .. }) if reason.contains("is gone")),
            "{outcome:?}"
        );
    });
}

/// Waits until the store has looked once for what others wrote: until it tells of a record that
/// is written now, where nobody else works.
async fn looked_around(store: &ConsulStore, server: &Server, root: &str, text: &str) {
    let (_, at) = list(store, "aside/").await.unwrap();
    let mut watch = store.watch(prefix("aside/"), at);
    server.must("PUT", &format!("/v1/kv/{root}/aside/mark"), text);
    let event = next_news(&mut watch).await;
    assert!(
        matches!(event, Some(Ok(WatchEvent::Reset { .. }))),
        "{text}: {event:?}"
    );
}

#[test]
fn what_is_written_around_the_store_reaches_its_watchers() {
    let cluster = Cluster::start(Plan::one());
    run(async {
        let root = root();
        let server = cluster.any();
        let mut options = cluster.options();
        options.probe_interval = Duration::from_millis(100);
        let address = cluster.address(0, &root);
        let store = ConsulStore::open(&address, options, Environment::system())
            .await
            .unwrap();
        put(&store, "o/a/b/c/d/pod", "1").await;
        put(&store, "o/single", "1").await;
        let (_, mut at) = list(&store, "o/").await.unwrap();
        for (number, (method, path, busy)) in [
            ("PUT", "o/a/b/c/d/pod", false),
            ("PUT", "o/a/b/c/d/new", false),
            ("PUT", "o/elsewhere", false),
            ("DELETE", "o/a/b/c/d/new", false),
            // With commits elsewhere right behind, the scopes tell.
            ("PUT", "o/a/b/c/d/pod", true),
            ("PUT", "o/single", true),
            ("DELETE", "o/single", true),
        ]
        .into_iter()
        .enumerate()
        {
            let mut watch = store.watch(prefix("o/"), at);
            // What went is missed only by who knew it: the first look finds the scopes, the
            // second what they hold.
            for look in 0..2 {
                looked_around(&store, server, &root, &format!("{number} {look}")).await;
            }
            let body = if method == "PUT" {
                format!("by hand {busy}")
            } else {
                String::new()
            };
            server.must(method, &format!("/v1/kv/{root}/{path}"), &body);
            if busy {
                for n in 0..3 {
                    put(&store, "x/busy", &n.to_string()).await;
                }
            }
            let event = next_news(&mut watch).await;
            assert!(
                matches!(event, Some(Ok(WatchEvent::Reset { .. }))),
                "{method} {path}, busy: {busy}: {event:?}"
            );
            let (records, revision) = list(&store, "o/").await.unwrap();
            let there = records
                .iter()
                .find(|record| record.key == Key::new(path).unwrap());
            assert_eq!(there.is_some(), method == "PUT", "{path}");
            at = revision;
        }
    });
}
