//! Subcommands whose own files are not merged yet: each line goes when its `mod` comes.

macro_rules! stub {
    ($($name:ident($($extra:ty),*)),* $(,)?) => {$(
        pub(super) mod $name {
            /// Nothing yet.
            #[derive(Debug, clap::Args)]
            pub struct Args {}
            pub(in crate::cli) async fn run(_: Args, _: crate::config::Config $(, _: $extra)*) -> anyhow::Result<std::process::ExitCode> {
                anyhow::bail!(concat!("`vogeler ", stringify!($name), "` is not built yet"))
            }
        }
    )*};
}
stub!(node(), find(),);
