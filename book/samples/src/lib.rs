//! The Rust samples of the book, each compiled and run as a documentation test.
//! `tests/it` looks at everything else that they show, and that no chapter with Rust in it is
//! missing here.

macro_rules! chapters {
    ($($name:ident: $file:literal;)*) => {
        $(
            #[doc = include_str!($file)]
            pub mod $name {}
        )*
    };
}

chapters! {
    embed_kinds: "../../src/embed/kinds.md";
    embed_run: "../../src/embed/run.md";
    embed_parts: "../../src/embed/parts.md";
    embed_client: "../../src/embed/client.md";
    embed_test_your_controller: "../../src/embed/test-your-controller.md";
}
