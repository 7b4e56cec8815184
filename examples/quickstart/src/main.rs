//! A small HTTP server, run as pods by the quickstart.
//!
//! It shows what a program gets from platctrl and nothing else: the port to listen on
//! (`PORT_HTTP`), its configuration (the file named by `CONFIG_PATH`) and who it is (`POD_NAME`,
//! `NODE_NAME`). `/` answers with a greeting, `/_status` tells a health check that it serves. It
//! ends on SIGTERM by the default action: there is nothing to save.

mod config;
mod http;

use std::env;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http::{Method, Request, Response};

/// Connections served at once; one more is told to come back later.
const MAX_CONNECTIONS: usize = 64;

/// What the answers are made of.
#[derive(Debug)]
struct App {
    greeting: String,
    pod: String,
    node: String,
    pid: u32,
}

impl App {
    fn answer(&self, request: &Request) -> Response {
        match request.path.as_str() {
            _ if !matches!(request.method, Method::Get | Method::Head) => {
                Response::text(405, "only GET and HEAD are answered here\n")
            }
            "/" => Response::text(
                200,
                format!(
                    "{} from pod {} on node {}, pid {}\n",
                    self.greeting, self.pod, self.node, self.pid
                ),
            ),
            "/_status" => Response::text(200, "ok"),
            _ => Response::text(404, "nothing is here; try / or /_status\n"),
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Standard error may be gone; there is nobody left to tell then.
            let _ = writeln!(io::stderr(), "platctrl-quickstart: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let port = env::var("PORT_HTTP").map_err(|_| {
        "PORT_HTTP is not set; it is the port to listen on (the manifest's `ports: { http: {} }` sets it)"
            .to_owned()
    })?;
    let port: u16 = port
        .parse()
        .map_err(|_| format!("PORT_HTTP is no port number: {port:?}"))?;
    let app = Arc::new(App {
        greeting: greeting()?,
        pod: env::var("POD_NAME").unwrap_or_else(|_| "(none)".to_owned()),
        node: env::var("NODE_NAME").unwrap_or_else(|_| "(none)".to_owned()),
        pid: process::id(),
    });
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map_err(|error| format!("cannot listen on port {port}: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    log(format_args!("listening on {address}"));
    serve(&listener, &app);
    Ok(())
}

fn greeting() -> Result<String, String> {
    let Ok(path) = env::var("CONFIG_PATH") else {
        return Ok("hello".to_owned());
    };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("cannot read the configuration {path}: {error}"))?;
    Ok(config::value(&text, "greeting").unwrap_or_else(|| "hello".to_owned()))
}

fn serve(listener: &TcpListener, app: &Arc<App>) {
    // One clone per connection in service: the count of clones is the count of connections.
    let slots = Arc::new(());
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A connection that ended early, or too many files open: neither is worth dying
                // for, and the pause keeps the second from spinning.
                log(format_args!("accept: {error}"));
                thread::sleep(Duration::from_millis(20));
                continue;
            }
        };
        if Arc::strong_count(&slots) > MAX_CONNECTIONS {
            http::refuse(
                stream,
                &Response::text(503, "too many connections; try again\n"),
            );
            continue;
        }
        let (app, slot) = (Arc::clone(app), Arc::clone(&slots));
        let spawned = thread::Builder::new()
            .name("connection".to_owned())
            .spawn(move || {
                connection(stream, &app);
                drop(slot);
            });
        if let Err(error) = spawned {
            log(format_args!("cannot start a thread: {error}"));
        }
    }
}

fn connection(stream: TcpStream, app: &App) {
    // An error here is the peer's: it went away or was too slow.
    let _ = http::serve(stream, |request| {
        let response = app.answer(request);
        if request.path != "/_status" {
            let path = request.path.escape_debug();
            log(format_args!(
                "{:?} {path} {}",
                request.method, response.status
            ));
        }
        response
    });
}

/// One line on standard output. A reader that went away is no reason to stop serving.
fn log(line: std::fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
