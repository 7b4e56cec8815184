//! Certificates that are replaced while everything runs.

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_store_consul::{ConsulStore, TlsOptions};

use crate::helpers::run;
use crate::server::{Cluster, Plan, root};
use crate::work::Work;
use platctrl_test_support::certificates::Authority;

#[test]
fn certificates_are_rotated_under_a_running_store() {
    let mut cluster = Cluster::start(Plan::one().with_tls());
    run(async {
        let own = tempfile::tempdir().unwrap();
        let names = || vec!["client.test".to_owned()];
        let ca = cluster.authority.write(own.path());
        let pair = cluster.authority.issue("", names());
        let (certificate, key) = pair.write(own.path(), "own");
        let mut options = cluster.options();
        let mut tls = TlsOptions::with_ca(&ca);
        tls.client = Some((certificate.clone(), key));
        tls.server_name = Some("server.dc1.consul".to_owned());
        options.tls = Some(tls);
        options.timeout = Duration::from_secs(3);
        let (address, environment) = (cluster.address(0, &root()), Environment::system());
        let open = || ConsulStore::open(&address, options.clone(), environment.clone());
        let store = Arc::new(open().await.unwrap());
        let work = Work::begin(&store);
        work.more(10).await;

        // Half a change is not used: whoever begins with it is refused, who runs goes on with
        // what it has, on new connections as well.
        std::fs::write(&certificate, "half").unwrap();
        assert!(open().await.is_err(), "it is no certificate");
        cluster.servers[0].kill();
        cluster.servers[0].start();
        cluster.wait_until_ready();
        work.more(10).await;

        // A new authority, in the order that leaves nobody outside: first both sides trust the
        // old and the new one, then both get new certificates, then the old one is forgotten.
        let next = Authority::new("the next authority");
        let both = cluster.authority.pem() + &next.pem();
        let server = cluster.dir().join("s0");
        let at = cluster.servers[0].address.clone();
        let restart = |cluster: &mut Cluster| {
            cluster.servers[0].kill();
            cluster.servers[0].start();
            cluster.wait_until_ready();
        };
        std::fs::write(&ca, &both).unwrap();
        std::fs::write(server.join("ca.pem"), &both).unwrap();
        restart(&mut cluster);
        next.issue("", names()).write(own.path(), "own");
        work.more(10).await;
        next.issue("server", vec![at, "server.dc1.consul".to_owned()])
            .write(&server, "server");
        std::fs::write(server.join("ca.pem"), next.pem()).unwrap();
        restart(&mut cluster);
        let old = cluster.options();
        let refused = ConsulStore::open(&address, old, environment.clone()).await;
        assert!(refused.is_err(), "what was good before is not any more");
        work.more(20).await;
        work.check(&store).await;
    });
}
