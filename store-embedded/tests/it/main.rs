//! The embedded store on real files and real processes.

mod backup;
mod conformance;
mod crash;
mod full_disk;
mod helpers;
mod leases;
mod model;
mod opening;
mod reads;
mod watches;
