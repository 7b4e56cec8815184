//! Reconcile loops over a store you already run: model, store trait, caches, queue, controllers.
