//! The kinds of platctrl.dev/v1: pods, nodes, replication controllers.
