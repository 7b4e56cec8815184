//! Roots that are nobody's, somebody else's or of a newer format: each error names the store and
//! what is wrong with it, on every backend.

use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Key, Store, Transaction};
use platctrl_store_embedded::EmbeddedStore;

use crate::copies::Places;

/// Writes a record around platctrl.
fn write(places: &Places, url: &str, root: &str, key: &str, value: &str) {
    if url.starts_with("etcd:") {
        let at = format!("{root}/{key}");
        places.etcd.etcdctl(&["put", &at, value]).unwrap();
    } else if url.starts_with("consul:") {
        let hush = std::fs::read_to_string(places.consul.hush()).unwrap();
        let path = format!("/v1/kv/{root}/{key}");
        let (status, _) = places.consul.ask(&hush, "PUT", &path, value).unwrap();
        assert_eq!(status, 200);
    } else {
        let dir = places.rig.path(root);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = EmbeddedStore::open(dir, Environment::system()).unwrap();
            let key = Key::new(key).unwrap();
            let put = Transaction::new().put(key, value.to_owned());
            store.commit(put).await.unwrap();
        });
    }
}

#[test]
fn a_root_of_nobody_of_somebody_else_or_of_a_newer_format_is_named_on_every_backend() {
    let places = Places::new();
    for (foreign, ours) in [
        (places.etcd("theirs"), places.etcd("ours")),
        (places.consul("theirs"), places.consul("ours")),
        (places.embedded("theirs"), places.embedded("ours")),
    ] {
        // Somebody else keeps something there; to us it is nobody's, and nothing is put beside it.
        write(&places, &foreign, "theirs", "their/config", "precious");
        for verb in ["info", "unseal", "restored"] {
            places
                .store(&[verb, &foreign])
                .fails(3, &[&foreign, "has no anchor", "store init"]);
        }
        places
            .store(&["init", &foreign])
            .fails(6, &[&foreign, "not empty", "their/config"]);
        places.store(&["init", &ours]).ok();
        places
            .store(&["init", &ours])
            .fails(6, &[&ours, "not empty"]);
        places
            .store(&["copy", &foreign, &places.etcd("new")])
            .fails(3, &[&foreign, "has no anchor"]);
        places
            .store(&["copy", &ours, &foreign])
            .fails(6, &[&foreign, "not empty", "their/config"]);

        // A newer version was here.
        let format = r#"{"writeVersion":99,"minReader":99}"#;
        write(&places, &ours, "ours", "x/format", format);
        for verb in ["info", "unseal", "restored"] {
            places
                .store(&[verb, &ours])
                .fails(1, &[&ours, "needs version 99", "upgrade"]);
        }
        // And one that nobody understands.
        write(&places, &ours, "ours", "x/anchor", "{");
        places
            .store(&["info", &ours])
            .fails(1, &[&ours, "anchor is not readable"]);
    }
}
