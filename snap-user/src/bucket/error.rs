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
        let text = with_causes(error);
        // Some requests are answered by an error of no kind, and without any key a machine of the cloud is looked for.
        const SIGNS: [&str; 4] = [
            "401 Unauthorized",
            "403 Forbidden",
            "169.254.169.254",
            "metadata.google.internal",
        ];
        let denied = matches!(
            error,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. }
        ) || SIGNS.iter().any(|sign| text.contains(sign));
        let mut why = redact(&text);
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

/// Takes out of a text the keys of the environment, those that a service repeats, and what follows the `?` of a URL,
/// where signatures are; also line breaks; and cuts it.
pub(super) fn redact(text: &str) -> String {
    let text = &without_keys(text, std::env::vars());
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

/// A text without the values of variables that hold keys, and without the elements of an S3 error that repeat them.
fn without_keys(text: &str, variables: impl Iterator<Item = (String, String)>) -> String {
    let mut text = text.to_owned();
    for (name, value) in variables {
        let is_of_service = ["AWS_", "GOOGLE_", "AZURE_"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        let is_key = ["KEY", "TOKEN", "SECRET", "SAS"]
            .iter()
            .any(|word| name.contains(word));
        if is_of_service && is_key && value.len() >= 4 {
            text = text.replace(&value, "…");
        }
    }
    for element in ["<AWSAccessKeyId>", "<Token-0>"] {
        while let Some(at) = text.find(element) {
            let end = text[at + element.len()..].find('<');
            let end = end.map_or(text.len(), |end| at + element.len() + end);
            text.replace_range(at..end, "…");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_a_service_repeats_are_taken_out() {
        let variables = [("AWS_SECRET_ACCESS_KEY", "S3CRET"), ("HOME", "/root")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let said = "<Error><AWSAccessKeyId>AKID</AWSAccessKeyId><Token-0>TOKEN</Token-0> S3CRET /root<Token-0>TOK";
        let text = without_keys(said, variables.into_iter());
        for key in ["AKID", "TOK", "S3CRET"] {
            assert!(!text.replace("</Token-0>", "").contains(key), "{text}");
        }
        assert!(text.contains("/root"), "{text}");
    }

    #[test]
    fn an_answer_of_no_kind_that_says_forbidden_is_about_keys() {
        let error = object_store::Error::Generic {
            store: "S3",
            source: "Server returned non-2xx status code: 403 Forbidden".into(),
        };
        let error = BucketError::service("list", "s3://b/p", &error);
        assert!(matches!(error, BucketError::Service { denied: true, .. }));
        assert!(error.to_string().contains("docs/bucket.md"), "{error}");
    }

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
