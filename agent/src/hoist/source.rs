//! Where an artifact may come from.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use url::Url;

use super::{Digest, Error};

/// The longest location that is looked at, in bytes.
const LONGEST: usize = 2048;

/// A location, understood.
///
/// ```
/// use platctrl_agent::hoist::Source;
///
/// let source = Source::parse("file:/srv/artifacts/hello_1.0.0.tar.gz")?;
/// assert_eq!(source, Source::File("/srv/artifacts/hello_1.0.0.tar.gz".into()));
/// assert!(Source::parse("ftp://example.org/hello.tar.gz").is_err());
/// # Ok::<(), platctrl_agent::hoist::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// `file:/DIR/FILE`: a file of this machine, under a directory the agent allows.
    File(PathBuf),
    /// `artifact:sha256:HEX`: uploaded to the server.
    Artifact(Digest),
    /// `https://HOST/PATH`, or `http:`; without a user and a fragment.
    Http(Url),
    /// `s3://BUCKET/KEY`: from a server that speaks S3.
    S3 {
        /// The bucket.
        bucket: String,
        /// The object's key, parts between slashes.
        key: String,
    },
}

impl Source {
    /// Understands a `location` from a manifest.
    ///
    /// # Errors
    /// [`Error::UnsupportedLocation`], which says what works instead.
    pub fn parse(location: &str) -> Result<Self, Error> {
        let refuse = |reason: String| {
            Err(Error::UnsupportedLocation {
                location: redact(location),
                reason,
            })
        };
        if location.len() > LONGEST {
            return refuse(format!("it is longer than {LONGEST} bytes"));
        }
        if location.chars().any(char::is_control) {
            return refuse("it has control characters".into());
        }
        match location.split_once(':') {
            Some(("artifact", digest)) => match digest.parse() {
                Ok(digest) => Ok(Self::Artifact(digest)),
                Err(e) => refuse(e.to_string()),
            },
            Some(("file", path)) => {
                let path = match path.strip_prefix("//") {
                    Some(path) if path.starts_with('/') => path,
                    Some(_) => return refuse("file: names no host; write file:/DIR/FILE".into()),
                    None => path,
                };
                let plain = path.starts_with('/')
                    && path[1..]
                        .split('/')
                        .all(|part| !matches!(part, "" | "." | ".."));
                if !plain {
                    return refuse("file: needs a full path without `.`, `..` and `//`".into());
                }
                Ok(Self::File(PathBuf::from(path)))
            }
            Some(("http" | "https", _)) => match web(location) {
                Ok(url) => Ok(Self::Http(url)),
                Err(reason) => refuse(reason),
            },
            Some(("s3", rest)) => match rest.strip_prefix("//").and_then(|it| it.split_once('/')) {
                Some((bucket, key)) if is_bucket(bucket) && is_key(key) => Ok(Self::S3 {
                    bucket: bucket.to_owned(),
                    key: key.to_owned(),
                }),
                _ => refuse("s3: is written s3://BUCKET/KEY, without `.`, `..` and `//`".into()),
            },
            Some((scheme, _)) if is_scheme(scheme) => {
                refuse(format!("this agent does not fetch from `{scheme}:`"))
            }
            _ => refuse("a path relative to a manifest means something only to `apply`".into()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => {
                write!(
                    f,
                    "file:{}",
                    super::escape(path.as_os_str().as_encoded_bytes())
                )
            }
            Self::Artifact(digest) => write!(f, "artifact:{digest}"),
            Self::Http(url) => f.write_str(&shown(url)),
            Self::S3 { bucket, key } => {
                write!(f, "s3://{bucket}/{}", super::escape(key.as_bytes()))
            }
        }
    }
}

impl Source {
    /// Whose server it is, for sharing its attention: a dead one must not take all of ours.
    pub(super) fn server(&self) -> String {
        match self {
            Self::File(_) => "file".to_owned(),
            Self::Artifact(_) => "artifact".to_owned(),
            Self::Http(url) => url.authority().to_owned(),
            Self::S3 { bucket, .. } => format!("s3://{bucket}"),
        }
    }
}

/// A URL as a message may show it: without what follows `?`, where signed requests have their key.
pub(super) fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    let _ = shown.set_password(None);
    let _ = shown.set_username("");
    super::escape(shown.as_str().as_bytes())
}

/// An address on the web that we ask, or why not.
pub(super) fn web(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("it is no URL: {error}"))?;
    let lower = text.to_ascii_lowercase();
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "this agent does not fetch from `{}:`",
            url.scheme()
        ));
    }
    let after = lower.strip_prefix(&format!("{}://", url.scheme()));
    if url.host().is_none() || after.is_none_or(|after| after.starts_with(['/', '\\'])) {
        return Err("it names no host: write https://HOST/PATH".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a user and a password do not belong into it: everybody can read it".into());
    }
    if url.fragment().is_some() {
        return Err("it has a `#`, which no server gets to see".into());
    }
    if ["%00", "%0a", "%0d"].iter().any(|it| lower.contains(it)) {
        return Err("it has control characters".into());
    }
    Ok(url)
}

fn is_bucket(text: &str) -> bool {
    (3..=63).contains(&text.len())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
        && !text.contains("..")
}

fn is_key(text: &str) -> bool {
    text.len() <= 1024 && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// A location as a message may show it: without user, password and query, where secrets are.
fn redact(location: &str) -> String {
    let location = location.split(['?', '#']).next().unwrap_or_default();
    let shown = match location.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            let host = rest[..end].rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{}", &rest[end..])
        }
        None => location.to_owned(),
    };
    super::escape(shown.as_bytes())
}

/// Splits `path` at the longest of the directories `allowed` that it lies under, by name.
///
/// Symbolic links are the opener's business, which resolves the second part beneath the first.
pub(super) fn under<'a>(path: &'a Path, allowed: &'a [PathBuf]) -> Option<(&'a Path, &'a Path)> {
    allowed
        .iter()
        .filter_map(|root| Some((root.as_path(), path.strip_prefix(root).ok()?)))
        .filter(|(_, rest)| {
            rest.components().next().is_some()
                && rest
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)))
        })
        .max_by_key(|(root, _)| root.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_fetched_is_refused_with_what_works_instead() {
        let long = format!("file:/{}", "a".repeat(LONGEST));
        for (location, words) in [
            ("ftp://example.org/a.tar.gz", "does not fetch from `ftp:`"),
            ("https://me:hunter2@example.org/a", "a user and a password"),
            ("https://me@example.org/a", "a user and a password"),
            ("https:///a", "no host"),
            ("https:a", "no host"),
            ("http://", "no URL"),
            ("https://example.org/a%00b", "control characters"),
            ("https://example.org/a%0D%0AHost:x", "control characters"),
            ("https://example.org/a#b", "`#`"),
            ("s3://b/a.tar.gz", "s3://BUCKET/KEY"),
            ("s3://bucket", "s3://BUCKET/KEY"),
            ("s3://bucket/", "s3://BUCKET/KEY"),
            ("s3://bucket/a//b", "s3://BUCKET/KEY"),
            ("s3://bucket/../b", "s3://BUCKET/KEY"),
            ("s3:bucket/b", "s3://BUCKET/KEY"),
            ("a.tar.gz", "relative to a manifest"),
            ("/srv/a.tar.gz", "relative to a manifest"),
            ("", "relative to a manifest"),
            ("file:a.tar.gz", "full path"),
            ("file:/srv/../etc/shadow", "full path"),
            ("file:/srv//a", "full path"),
            ("file://host/srv/a", "names no host"),
            ("file://../srv/a", "names no host"),
            ("file:/srv/a\r\nHost: x", "control characters"),
            ("file:/srv/a\0", "control characters"),
            ("artifact:sha512:00", "is not a digest"),
            ("artifact:", "is not a digest"),
            (long.as_str(), "longer than"),
        ] {
            let error = Source::parse(location).unwrap_err();
            assert!(matches!(error, Error::UnsupportedLocation { .. }));
            let text = error.to_string();
            assert!(
                text.contains(words)
                    && text.contains("artifact:sha256:HEX")
                    && !text.contains("hunter"),
                "{text}"
            );
            assert!(!text.contains(['\r', '\n', '\0']), "{text}");
        }
    }

    #[test]
    fn secrets_in_a_location_are_not_shown() {
        let error = Source::parse("https://me:hunter2@example.org/a?token=hunter3").unwrap_err();
        let source = Source::parse("https://example.org/a?token=hunter3").unwrap();
        for text in [error.to_string(), source.to_string()] {
            assert!(
                text.contains("https://example.org/a") && !text.contains("hunter"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_file_lies_under_the_longest_allowed_directory_that_has_its_name() {
        let allowed = [
            PathBuf::from("/srv"),
            "/srv/artifacts".into(),
            "/opt/a".into(),
        ];
        let under = |path| super::under(Path::new(path), &allowed);
        let found = (Path::new("/srv/artifacts"), Path::new("x/y"));
        assert_eq!(under("/srv/artifacts/x/y"), Some(found));
        assert_eq!(under("/srv/b"), Some((Path::new("/srv"), Path::new("b"))));
        for outside in [
            "/opt/ab",
            "/opt/a",
            "/etc/shadow",
            "/srv",
            "/srv/../etc/shadow",
        ] {
            assert_eq!(under(outside), None, "{outside}");
        }
    }
}
