//! The server that every side reads, in a process of its own: an API server as far as lists in
//! pages and a chunked JSON watch go, and the one who changes objects when told to.
//!
//! It holds every object's bytes and overwrites four numbers in them, so that it takes little of
//! the processor. It writes one object a line. A connection that begins with `LOAD` makes
//! changes: it says what to do, then how many changes its side has accounted for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use platctrl_bench::Result;

use crate::widget::{FIRST_ROUND, FIRST_VERSION, NO_STAMP, body, index, now};

/// The most changes that a storm is ahead of its side: fewer than there are objects, so that no
/// two of one object are merged.
const AHEAD: u64 = 10_000;
/// Changes written at once.
const BURST: usize = 32;

/// An object's bytes and where its numbers are in them.
struct Object {
    json: Vec<u8>,
    version: usize,
    generation: usize,
    round: usize,
    stamp: usize,
}

impl Object {
    fn new(index: usize) -> Self {
        let json = body(index);
        let place = |name: &str, number: u64| {
            let field = format!("{name}{number}");
            json.find(&field).map_or(0, |at| at + name.len())
        };
        let version = place(r#""resourceVersion":""#, FIRST_VERSION);
        let generation = place(r#""generation":"#, FIRST_ROUND);
        let round = place(r#""round":"#, FIRST_ROUND);
        let stamp = place(r#""stamp":"#, NO_STAMP);
        Self {
            json: json.into_bytes(),
            version,
            generation,
            round,
            stamp,
        }
    }

    fn set(&mut self, place: fn(&Self) -> usize, number: u64) {
        let (at, text) = (place(self), number.to_string());
        if let Some(digits) = self.json.get_mut(at..at + text.len()) {
            digits.copy_from_slice(text.as_bytes());
        }
    }
}

struct World {
    objects: Vec<Object>,
    rounds: Vec<u64>,
    version: u64,
}

impl World {
    /// Changes an object and appends the watch's line about it.
    fn change(&mut self, index: usize, stamp: u64, out: &mut Vec<u8>) {
        self.version += 1;
        self.rounds[index] += 1;
        let (version, round) = (self.version, self.rounds[index]);
        let object = &mut self.objects[index];
        object.set(|object| object.version, version);
        object.set(|object| object.generation, round);
        object.set(|object| object.round, round);
        object.set(|object| object.stamp, stamp);
        out.extend_from_slice(br#"{"type":"MODIFIED","object":"#);
        out.extend_from_slice(&object.json);
        out.extend_from_slice(b"}\n");
    }
}

struct Server {
    world: Mutex<World>,
    /// The last watch that was opened.
    watcher: Mutex<Option<TcpStream>>,
    opened: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves until standard input ends; prints its port first.
pub(crate) fn serve(objects: usize) -> Result<()> {
    let server = Arc::new(Server {
        world: Mutex::new(World {
            objects: (0..objects).map(Object::new).collect(),
            rounds: vec![FIRST_ROUND; objects],
            version: FIRST_VERSION,
        }),
        watcher: Mutex::default(),
        opened: Condvar::new(),
    });
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let server = Arc::clone(&server);
            thread::spawn(move || {
                // A side that has ended closes its connections.
                if let Err(error) = server.connection(&connection)
                    && error.downcast_ref::<std::io::Error>().is_none()
                {
                    eprintln!("server: {error}");
                }
            });
        }
    });
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

impl Server {
    fn connection(&self, connection: &TcpStream) -> Result<()> {
        connection.set_nodelay(true)?;
        let mut lines = BufReader::new(connection.try_clone()?);
        let mut connection = connection;
        loop {
            let mut request = String::new();
            if lines.read_line(&mut request)? == 0 {
                return Ok(());
            }
            let words: Vec<&str> = request.split_whitespace().collect();
            if let ["LOAD", load @ ..] = words.as_slice() {
                let load: Vec<u64> = load.iter().flat_map(|word| word.parse()).collect();
                let events = self.load(&load, lines)?;
                writeln!(connection, "{events}")?;
                return Ok(());
            }
            let target = words.get(1).copied().unwrap_or_default();
            let query = target.split_once('?').map_or("", |(_, query)| query);
            let query = query.to_owned();
            let mut header = String::new();
            while lines.read_line(&mut header)? > 2 {
                header.clear();
            }
            let watch = parameter(&query, "watch").is_some_and(|value| value != "false");
            if watch {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
                connection.write_all(head.as_bytes())?;
                *lock(&self.watcher) = Some(connection.try_clone()?);
                self.opened.notify_all();
            } else {
                let page = self.page(&query);
                let length = page.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
                );
                connection.write_all(head.as_bytes())?;
                connection.write_all(&page)?;
            }
        }
    }

    fn page(&self, query: &str) -> Vec<u8> {
        let number = |name| parameter(query, name).and_then(|value| value.parse::<usize>().ok());
        let after = parameter(query, "continue").and_then(index);
        let world = lock(&self.world);
        let begin = after.map_or(0, |after| after + 1);
        let most = number("limit").unwrap_or(usize::MAX);
        let end = begin.saturating_add(most).min(world.objects.len());
        let more = if end < world.objects.len() {
            crate::widget::name(end - 1)
        } else {
            String::new()
        };
        let version = world.version;
        let objects = &world.objects[begin.min(end)..end];
        let head = format!(
            r#"{{"kind":"WidgetList","apiVersion":"bench.dev/v1","metadata":{{"resourceVersion":"{version}","continue":"{more}"}},"items":["#
        );
        let length: usize = objects.iter().map(|object| object.json.len() + 2).sum();
        let mut page = Vec::with_capacity(head.len() + length + 4);
        page.extend_from_slice(head.as_bytes());
        for (place, object) in objects.iter().enumerate() {
            page.extend_from_slice(if place == 0 { b"\n" } else { b",\n" });
            page.extend_from_slice(&object.json);
        }
        page.extend_from_slice(b"\n]}\n");
        page
    }

    fn watcher(&self) -> Result<TcpStream> {
        let mut watcher = lock(&self.watcher);
        loop {
            if let Some(watcher) = &*watcher {
                return Ok(watcher.try_clone()?);
            }
            watcher = self
                .opened
                .wait(watcher)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// `[changes]`: a storm, to one object after the other. `[changes, rate, hot]`: so many a
    /// second, every second one to object 0 if `hot` is 1.
    fn load(&self, load: &[u64], mut acknowledged: BufReader<TcpStream>) -> Result<u64> {
        let mut watcher = self.watcher()?;
        let done = Arc::new(AtomicU64::new(0));
        thread::spawn({
            let done = Arc::clone(&done);
            move || {
                let mut number = [0; 8];
                while acknowledged.read_exact(&mut number).is_ok() {
                    done.store(u64::from_le_bytes(number), Ordering::SeqCst);
                }
            }
        });
        let (&changes, rate, hot) = match load {
            [changes] => (changes, None, false),
            [changes, rate, hot] => (changes, Some(*rate), *hot == 1),
            _ => return Err(format!("there is no load {load:?}").into()),
        };
        let objects = lock(&self.world).objects.len();
        let object = |change: u64| match hot {
            true if change.is_multiple_of(2) => 0,
            _ => change as usize % objects,
        };
        let begun = Instant::now();
        let (mut written, mut lines, mut chunk) = (0, Vec::new(), Vec::new());
        while written < changes {
            let allowed = match rate {
                None => done.load(Ordering::SeqCst) + AHEAD,
                Some(rate) => 1 + (begun.elapsed().as_secs_f64() * rate as f64) as u64,
            };
            let until = allowed.min(changes).min(written + BURST as u64);
            if until <= written {
                let pause = rate.map_or(Duration::from_micros(200), |rate| {
                    Duration::from_secs_f64(written as f64 / rate as f64)
                        .saturating_sub(begun.elapsed())
                });
                thread::sleep(pause.min(Duration::from_millis(1)));
                continue;
            }
            lines.clear();
            let stamp = rate.map_or(NO_STAMP, |_| now());
            {
                let mut world = lock(&self.world);
                for change in written..until {
                    world.change(object(change), stamp, &mut lines);
                }
            }
            written = until;
            chunk.clear();
            write!(chunk, "{:x}\r\n", lines.len())?;
            chunk.extend_from_slice(&lines);
            chunk.extend_from_slice(b"\r\n");
            watcher.write_all(&chunk)?;
        }
        Ok(written)
    }
}
