//! Whether a signature is good, from what gpg tells of it.
//!
//! gpg ends well and says "good" of signatures whose key is expired or revoked, or whose digest is
//! broken; and it takes a text with anything before and behind it. So all it tells is read here,
//! and only what is known to be good is.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use super::SKEW;

/// How a signed text begins.
const BEGIN: &str = "-----BEGIN PGP SIGNED MESSAGE-----";
/// How its signature begins and ends.
const SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----";
const END: &str = "-----END PGP SIGNATURE-----";
/// The signatures of one text are no longer than this.
const MAX_SIGNATURE: usize = 64 << 10;
/// So many may sign one text.
const MAX_SIGNERS: usize = 16;
/// RSA keys have at least so many bits.
const RSA_BITS: u64 = 3072;

/// What was signed, by whom.
#[derive(Clone, Debug)]
pub(super) struct Signed {
    pub(super) signers: Vec<Signer>,
    pub(super) text: String,
}

/// The whole fingerprint of a key: shorter ones can be made at will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(String);

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text: String = text
            .chars()
            .filter(|c| !c.is_ascii_whitespace())
            .collect::<String>()
            .to_ascii_uppercase();
        let text = text.strip_prefix("0X").unwrap_or(&text);
        match text.chars().all(|c| c.is_ascii_hexdigit()) && matches!(text.len(), 40 | 64) {
            true => Ok(Self(text.to_owned())),
            false => Err("write the whole fingerprint, 40 hexadecimal digits: `gpg --show-keys FILE` prints it".to_owned()),
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose signature it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Signer {
    /// The key that stands for the person.
    pub(super) key: Fingerprint,
    pub(super) at: Timestamp,
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.key, self.at)
    }
}

/// A key of those that are trusted, or one below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) fingerprint: String,
    pub(super) bits: u64,
}

/// Whether there is a text with its signature in it.
pub(super) fn is_signed(text: &str) -> bool {
    text.lines().any(|line| line.trim_end() == BEGIN)
}

/// Checks that there is nothing but one signed text.
pub(super) fn frame(text: &str) -> Result<(), &'static str> {
    if !text.trim_start().starts_with(BEGIN) {
        return Err("there is no signed text in it, or something stands before it");
    }
    let lines = || text.lines().map(str::trim_end);
    let count = |mark: &str| lines().filter(|line| *line == mark).count();
    if (count(BEGIN), count(SIGNATURE), count(END)) != (1, 1, 1) {
        return Err("there is not exactly one signed text in it");
    }
    let head = lines().skip_while(|line| *line != BEGIN).skip(1);
    let mut head = head.take_while(|line| !line.is_empty());
    if head.any(|line| !line.starts_with("Hash: ")) {
        return Err("something stands before the signed text");
    }
    let Some((_, signature)) = text.split_once(SIGNATURE) else {
        return Err("it has no signature");
    };
    let Some((signature, behind)) = signature.split_once(END) else {
        return Err("its signature has no end");
    };
    if !behind.trim().is_empty() {
        return Err("something stands behind the signed text");
    }
    if signature.len() > MAX_SIGNATURE {
        return Err("its signature is too long");
    }
    Ok(())
}

/// Checks that a signature covers every byte of a text.
pub(super) fn text(text: &str) -> Result<(), &'static str> {
    if text.contains('\r') {
        return Err("a line of it ends with a carriage return");
    }
    if text.split('\n').any(|line| line.ends_with([' ', '\t'])) {
        return Err("a line of it ends with blanks");
    }
    if text.contains('\0') {
        return Err("it has bytes that no text has");
    }
    Ok(())
}

/// What stands for a signature that is not good.
const BAD: [(&str, &str); 8] = [
    ("BADSIG", "it was changed after it was signed"),
    ("EXPSIG", "the signature was good for a time that is over"),
    ("EXPKEYSIG", "the key that signed it is expired"),
    ("REVKEYSIG", "the key that signed it is revoked"),
    (
        "ERRSIG",
        "the key that signed it is not among those that are trusted",
    ),
    (
        "NO_PUBKEY",
        "the key that signed it is not among those that are trusted",
    ),
    ("NODATA", "there is no signature in it"),
    ("UNEXPECTED", "it holds what no signed text holds"),
];

/// Who signed it, if every signature is good and by a key that is trusted.
pub(super) fn judge(
    status: &str,
    keys: &[Key],
    only: &[Fingerprint],
    now: Timestamp,
) -> Result<Vec<Signer>, String> {
    let told = status.lines().filter_map(|line| {
        let mut words = line.strip_prefix("[GNUPG:] ")?.split(' ');
        Some((words.next()?, words.collect::<Vec<_>>()))
    });
    let (mut begun, mut good, mut signers) = (0, 0, Vec::new());
    for (word, rest) in told {
        if let Some((_, why)) = BAD.iter().find(|(bad, _)| *bad == word) {
            return Err((*why).to_owned());
        }
        match word {
            "NEWSIG" => begun += 1,
            "GOODSIG" => good += 1,
            "VALIDSIG" => signers.push(signer(&rest, keys, only, now)?),
            _ => {}
        }
    }
    if signers.is_empty() {
        return Err("nobody signed it".to_owned());
    }
    if signers.len() > MAX_SIGNERS {
        return Err(format!("it has more than {MAX_SIGNERS} signatures"));
    }
    if (begun, good) != (signers.len(), signers.len()) {
        return Err("not every signature of it is good".to_owned());
    }
    Ok(signers)
}

/// One signature: `FINGERPRINT DATE TIME EXPIRES VERSION RESERVED KEY-ALGORITHM DIGEST CLASS PRIMARY`.
fn signer(
    words: &[&str],
    keys: &[Key],
    only: &[Fingerprint],
    now: Timestamp,
) -> Result<Signer, String> {
    let [
        own,
        _,
        at,
        _,
        version,
        _,
        algorithm,
        digest,
        class,
        primary,
        ..,
    ] = words
    else {
        return Err("gpg tells too little of its signature".to_owned());
    };
    let known = |fingerprint: &str| keys.iter().find(|key| key.fingerprint == fingerprint);
    let (Some(key), Some(_)) = (known(own), known(primary)) else {
        return Err("the key that signed it is not among those that are trusted".to_owned());
    };
    let primary: Fingerprint = primary.parse()?;
    if !only.is_empty() && !only.contains(&primary) {
        return Err(format!("{primary} signed it, and nobody who was asked for"));
    }
    if *version != "4" {
        return Err(format!("its signature is of version {version}, not 4"));
    }
    // RSA, ECDSA, EdDSA.
    match (*algorithm, key.bits) {
        ("1", bits) if bits < RSA_BITS => {
            return Err(format!(
                "the key that signed it has {bits} bits, and needs {RSA_BITS}"
            ));
        }
        ("1" | "19" | "22", _) => {}
        (other, _) => return Err(format!("its key is of the kind {other}, which is too weak")),
    }
    // SHA-256, SHA-384, SHA-512.
    if !matches!(*digest, "8" | "9" | "10") {
        return Err(format!(
            "its signature uses the digest {digest}, which is too weak"
        ));
    }
    // Of a text.
    if *class != "01" {
        return Err(format!(
            "its signature is of the class {class}, not of a text"
        ));
    }
    let at = at.parse::<i64>().ok();
    let at = at.and_then(|at| Timestamp::from_second(at).ok());
    let at = at.ok_or("its signature has no time that is known")?;
    if at > now.checked_add(SKEW).unwrap_or(Timestamp::MAX) {
        return Err(format!(
            "it was signed at {at}, which is yet to come: is the clock right?"
        ));
    }
    Ok(Signer { key: primary, at })
}

/// The keys that gpg lists with colons.
pub(super) fn keys(listed: &str) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut bits = 0;
    for line in listed.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.first() {
            Some(&("pub" | "sub")) => {
                bits = fields
                    .get(2)
                    .and_then(|bits| bits.parse().ok())
                    .unwrap_or(0);
            }
            Some(&"fpr") => keys.extend(fields.get(9).map(|fingerprint| Key {
                fingerprint: (*fingerprint).to_owned(),
                bits,
            })),
            _ => {}
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "1B16053BC741437C1250A2AF65FEC34CDD9BFACA";

    fn key(bits: u64) -> Vec<Key> {
        vec![Key {
            fingerprint: OWN.into(),
            bits,
        }]
    }

    fn good() -> String {
        format!(
            "[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 65FEC34CDD9BFACA a\n[GNUPG:] VALIDSIG {OWN} 2026-01-01 1767225600 0 4 0 22 8 01 {OWN}\n"
        )
    }

    fn now() -> Timestamp {
        "2026-02-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_good_signature_names_its_signer() {
        let signers = judge(&good(), &key(255), &[], now()).unwrap();
        assert_eq!(signers.len(), 1);
        assert_eq!(
            signers[0].to_string(),
            format!("{OWN} at 2026-01-01T00:00:00Z")
        );
        let only = [OWN.parse().unwrap()];
        assert!(judge(&good(), &key(255), &only, now()).is_ok());
    }

    #[test]
    fn whatever_gpg_says_that_is_not_good_is_refused() {
        let refused = |status: &str, keys: &[Key]| judge(status, keys, &[], now()).unwrap_err();
        for (bad, _) in BAD {
            let status = format!("{}[GNUPG:] {bad} x\n", good());
            assert!(!refused(&status, &key(255)).is_empty(), "{bad}");
        }
        assert_eq!(refused("", &key(255)), "nobody signed it");
        assert_eq!(
            refused("gpg: Good signature\n", &key(255)),
            "nobody signed it"
        );
        let only_valid = good().replace("GOODSIG", "X");
        assert!(refused(&only_valid, &key(255)).contains("not every"));
        let one_more = format!("{}[GNUPG:] NEWSIG\n", good());
        assert!(refused(&one_more, &key(255)).contains("not every"));
        assert!(refused(&good(), &[]).contains("not among"));
        for (from, to, part) in [
            (" 22 8 01 ", " 22 2 01 ", "digest 2"),
            (" 22 8 01 ", " 22 11 01 ", "digest 11"),
            (" 22 8 01 ", " 17 8 01 ", "kind 17"),
            (" 22 8 01 ", " 22 8 00 ", "class 00"),
            (" 0 4 0 ", " 0 3 0 ", "version 3"),
            (" 1767225600 ", " 1777225600 ", "yet to come"),
            (" 22 8 01 ", " ", "too little"),
        ] {
            let status = good().replace(from, to);
            assert_ne!(status, good());
            let why = refused(&status, &key(255));
            assert!(why.contains(part), "{part:?} is not in {why}");
        }
        let rsa = good().replace(" 22 8 01 ", " 1 8 01 ");
        assert!(refused(&rsa, &key(1024)).contains("1024 bits"));
        assert!(judge(&rsa, &key(3072), &[], now()).is_ok());
        let other = ["0".repeat(40).parse().unwrap()];
        let why = judge(&good(), &key(255), &other, now()).unwrap_err();
        assert!(why.contains("nobody who was asked for"), "{why}");
    }

    #[test]
    fn nothing_but_one_signed_text_is_taken() {
        let whole = format!("{BEGIN}\nHash: SHA256\n\na: 1\n{SIGNATURE}\n\nabc\n{END}\n");
        assert_eq!(frame(&whole), Ok(()));
        assert_eq!(frame(&format!("\n{whole}\n\n")), Ok(()));
        for wrong in [
            "a: 1\n".to_owned(),
            format!("b: 2\n{whole}"),
            format!("{whole}b: 2\n"),
            format!("{whole}{whole}"),
            whole.replace("Hash: SHA256", "Comment: x"),
            whole.replace(END, ""),
            whole.replace(SIGNATURE, ""),
            whole.replace("abc", &"x".repeat(MAX_SIGNATURE + 1)),
        ] {
            assert!(frame(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_signature_does_not_cover_is_not_taken() {
        assert_eq!(text("a: 1\n- b"), Ok(()));
        for wrong in ["a: 1 \n", "a: 1\t", "a: 1\r\n", "a\0"] {
            assert!(text(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_fingerprint_is_whole() {
        let written = "1b16 053b c741 437c 1250  a2af 65fe c34c dd9b faca";
        assert_eq!(written.parse::<Fingerprint>().unwrap().to_string(), OWN);
        for wrong in ["65FEC34CDD9BFACA", "", "ann@example.org", &"g".repeat(40)] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_are_listed_with_those_below_them() {
        let listed = format!(
            "tru::1\npub:-:4096:1:65:1::\nfpr:::::::::{OWN}:\nuid:-::\nsub:-:255:22:66:1::\nfpr:::::::::{}:\n",
            "A".repeat(40)
        );
        let keys = keys(&listed);
        assert_eq!(keys.len(), 2);
        assert_eq!((keys[0].bits, keys[1].bits), (4096, 255));
    }
}
