//! What can go wrong with object storage.

use super::bytes::cut;
use std::fmt::Write as _;

/// The call of an error about an object that cannot be written.
pub(super) const WRITE: &str = "write";
/// Longest text of a service that is passed on.
const LONGEST: usize = 500;

/// Why something in object storage could not be read or written. No text has a key or a signature in it.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The URL names no place.
    #[error("{url}: {why}")]
    Url {
        /// What was given, without what may be secret.
        url: String,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// Nothing has been pushed there yet.
    #[error("nothing has been pushed to {url} yet")]
    Empty {
        /// The place.
        url: String,
    },
    /// The service, or the way to it, failed.
    #[error("cannot {call} {object}: {why}")]
    Service {
        /// What was tried: completes "cannot …".
        call: &'static str,
        /// On which object.
        object: String,
        /// What the service said.
        why: String,
        /// The keys are missing or do not suffice.
        denied: bool,
    },
    /// An object that should be there is not.
    #[error("{object} is not there")]
    Missing {
        /// Which one.
        object: String,
    },
    /// An object is not what was written.
    #[error("{object} is damaged: {why}")]
    Corrupt {
        /// Which one.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// A newer ksnap wrote it.
    #[error(
        "{object} has version {found} of its format, and this ksnap reads up to {supported}: use a newer ksnap"
    )]
    NewerVersion {
        /// Which one.
        object: String,
        /// Its version.
        found: u32,
        /// The highest that is read.
        supported: u32,
    },
    /// There is more of it than a format allows.
    #[error("{0}")]
    TooLarge(String),
}

impl BucketError {
    pub(super) fn corrupt(object: &str, why: impl Into<String>) -> Self {
        Self::Corrupt {
            object: object.to_owned(),
            why: why.into(),
        }
    }

    /// An error of the service. One about a missing object is [`BucketError::Missing`].
    pub(super) fn service(call: &'static str, object: &str, error: &object_store::Error) -> Self {
        use object_store::Error;
        match error {
            // What is written need not be there, but what it is written into.
            Error::NotFound { .. } if call == WRITE => {
                return Self::Service {
                    call,
                    object: object.to_owned(),
                    why: "there is no such bucket or container: make it first".into(),
                    denied: false,
                };
            }
            Error::NotFound { .. } => {
                return Self::Missing {
                    object: object.to_owned(),
                };
            }
            _ => {}
        }
        let denied = matches!(
            error,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. }
        );
        let mut why = redact(&with_causes(error));
        if denied {
            why.push_str(
                ". The keys come from the environment: docs/bucket.md says from which variables",
            );
        }
        Self::Service {
            call,
            object: object.to_owned(),
            why,
            denied,
        }
    }

    /// The object is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// An error and what it comes from, as far as that is not said yet.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            let _ = write!(text, ": {more}");
        }
        next = cause.source();
    }
    text
}

/// Takes out of a text what follows the `?` of a URL, where signatures are, and line breaks; and cuts it.
pub(super) fn redact(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        match word.split_once('?') {
            Some((before, _)) if before.contains("://") || before.contains('/') => {
                let _ = write!(out, "{before}?…");
            }
            _ => out.push_str(word),
        }
        if out.len() > LONGEST {
            out.truncate(cut(&out, LONGEST).len());
            out.push('…');
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_question_mark_in_a_url_is_taken_out() {
        let text = "error sending request for url (https://a.blob.core.windows.net/c/x?sv=1&sig=SECRET) \n why?";
        let redacted = redact(text);
        assert!(!redacted.contains("SECRET"), "{redacted}");
        assert!(redacted.ends_with("x?… why?"), "{redacted}");
        assert!(!redact("PUT /c/x?sig=SECRET").contains("SECRET"));
    }

    #[test]
    fn a_bucket_that_is_not_there_is_told_from_an_object_that_is_not() {
        let missing = object_store::Error::NotFound {
            path: "p".into(),
            source: "no".into(),
        };
        let of = |call| BucketError::service(call, "s3://b/p", &missing);
        assert!(of("read").is_missing());
        assert!(of(WRITE).to_string().contains("make it first"));
    }

    #[test]
    fn a_long_answer_is_cut() {
        let redacted = redact(&"größer ".repeat(500));
        assert!(redacted.len() <= LONGEST + 3 && redacted.ends_with('…'));
    }
}
