//! The room that artifacts take, and making some.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::time::SystemTime;

use super::{Inner, names};
use crate::hoist::collect::{self, Collected, Item, Removal, Use, Water};
use crate::hoist::{Digest, Error, install};

impl Inner {
    /// Everything that is there, by digest.
    pub(super) fn items(&self) -> Result<Vec<Item>, Error> {
        let mut items: BTreeMap<Digest, Item> = BTreeMap::new();
        let mut add = |digest, used, install: Option<u64>, cached: Option<u64>| {
            let item = items.entry(digest).or_insert(Item {
                digest,
                install: None,
                cached: None,
                used,
            });
            item.install = item.install.or(install);
            item.cached = item.cached.or(cached);
            item.used = item.used.max(used);
        };
        for name in names(&self.installs())? {
            let digest = name.strip_prefix("sha256-").map(Digest::from_hex);
            if let Some(Ok(digest)) = digest {
                let (bytes, used) = install::measure(&self.installs().join(name));
                add(digest, used, Some(bytes), None);
            }
        }
        let cache = self.config.data_dir.join("cache/sha256");
        for name in names(&cache)? {
            let metadata = fs::symlink_metadata(cache.join(&name));
            if let (Ok(digest), Ok(metadata)) = (Digest::from_hex(&name), metadata) {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                add(digest, used, None, Some(metadata.len()));
            }
        }
        Ok(items.into_values().collect())
    }

    pub(super) fn room(&self, items: &[Item]) -> Result<Use, Error> {
        let installs = self.installs();
        let disk =
            rustix::fs::statvfs(&installs).map_err(|e| Error::io("measure", &installs, e))?;
        let sum = |of: fn(&Item) -> Option<u64>| items.iter().filter_map(of).sum();
        Ok(Use {
            installs: sum(|item| item.install),
            cached: sum(|item| item.cached),
            // What is kept for root alone is neither free for pods nor used by anybody.
            disk: (disk.f_blocks.saturating_sub(disk.f_bfree))
                .saturating_add(disk.f_bavail)
                .saturating_mul(disk.f_frsize),
            free: disk.f_bavail.saturating_mul(disk.f_frsize),
        })
    }

    pub(super) fn collect(
        &self,
        keep: &BTreeSet<Digest>,
        water: Water,
    ) -> Result<Collected, Error> {
        let items = self.items()?;
        let excess = collect::excess(self.room(&items)?, water);
        let mut collected = Collected::default();
        for removal in collect::candidates(items, keep, water, SystemTime::now()) {
            if collected.freed >= excess {
                break;
            }
            if self.remove_unused(removal, &mut collected) {
                collected.freed = collected.freed.saturating_add(removal.bytes);
            }
        }
        collected.short = excess.saturating_sub(collected.freed);
        Ok(collected)
    }

    fn remove_unused(&self, removal: Removal, collected: &mut Collected) -> bool {
        let digest = removal.digest;
        let lock = self.digest_lock(&digest);
        // Somebody is just installing it.
        let Ok(_guard) = lock.try_lock() else {
            return false;
        };
        let mut remove = || -> Result<(), Error> {
            if removal.install {
                self.set_aside(&self.install_path(&digest))?;
                collected.installs.insert(digest);
            }
            let cached = self.cached(&digest);
            match fs::remove_file(&cached) {
                Ok(()) => drop(collected.cached.insert(digest)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("remove", &cached, e)),
            }
            Ok(())
        };
        match remove() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%digest, %error, "cannot remove an artifact that is not used");
                false
            }
        }
    }
}
