//! A URL → a service, with the keys of the environment.

use super::error::redact;
use super::{BucketError, Result};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};
use rustix::fs::Mode;
use std::fs::DirBuilder;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long one request may take: eight chunks at once share a line of a megabit a second.
const REQUEST: &str = "900 seconds";
/// A request that fails in a way that may pass is made again so often, within so long: longer than a request takes.
const RETRIES: usize = 6;
const RETRYING: Duration = Duration::from_secs(1800);

const EXPECTED: &str =
    "expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///PATH";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    S3,
    Google,
    Azure,
}

/// A URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    kind: Kind,
    /// Bucket or container; empty for a folder.
    bucket: String,
    /// What stands in front of all names; the folder's path.
    prefix: String,
}

/// Where objects are, as a service.
pub(super) struct Opened {
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
}

fn refused(url: &str, why: impl Into<String>) -> BucketError {
    BucketError::Url {
        url: redact(url),
        why: why.into(),
    }
}

impl Place {
    /// Takes a URL apart.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| refused(url, EXPECTED))?;
        let kind = match scheme {
            "file" => Kind::File,
            "s3" => Kind::S3,
            "gs" => Kind::Google,
            "az" => Kind::Azure,
            _ => return Err(refused(url, EXPECTED)),
        };
        if kind == Kind::File {
            let absolute = rest.starts_with('/');
            return match absolute {
                true => Ok(Self {
                    kind,
                    bucket: String::new(),
                    prefix: rest.to_owned(),
                }),
                false => Err(refused(
                    url,
                    "the path has to be absolute, with three slashes: file:///PATH",
                )),
            };
        }
        if rest.contains(['?', '#', '@']) {
            // It may be a key, and is not repeated.
            return Err(BucketError::Url {
                url: format!("{scheme}://…"),
                why: "a URL has neither `?` nor `#` nor `@`: keys come from the environment (docs/bucket.md)".into(),
            });
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(refused(url, EXPECTED));
        }
        Ok(Self {
            kind,
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
        })
    }

    /// As text.
    pub(super) fn url(&self) -> String {
        let Self { bucket, prefix, .. } = self;
        match self.kind {
            Kind::File => format!("file://{prefix}"),
            Kind::S3 => format!("s3://{bucket}/{prefix}"),
            Kind::Google => format!("gs://{bucket}/{prefix}"),
            Kind::Azure => format!("az://{bucket}/{prefix}"),
        }
    }

    /// Gets ready to talk to the service; `create` makes a folder that is not there. Nothing is sent yet.
    pub(super) fn open(&self, create: bool) -> Result<Opened> {
        // Settings that lack something, or certificates that are not there.
        let failed =
            |error: object_store::Error| BucketError::service("get ready for", &self.url(), &error);
        let prefix = match self.kind {
            Kind::File => Path::default(),
            _ => Path::parse(&self.prefix)
                .map_err(|error| refused(&self.url(), error.to_string()))?,
        };
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: RETRYING,
            ..RetryConfig::default()
        };
        if self.kind != Kind::File {
            // One that is there already does as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let timeout = ClientConfigKey::Timeout;
        let objects: Arc<dyn ObjectStore> = match self.kind {
            Kind::File => Arc::new(self.folder(create)?),
            Kind::S3 => Arc::new(
                AmazonS3Builder::from_env()
                    .with_config(AmazonS3ConfigKey::Client(timeout), REQUEST)
                    .with_bucket_name(&self.bucket)
                    .with_retry(retry)
                    .build()
                    .map_err(failed)?,
            ),
            Kind::Google => Arc::new(
                GoogleCloudStorageBuilder::from_env()
                    .with_config(GoogleConfigKey::Client(timeout), REQUEST)
                    .with_bucket_name(&self.bucket)
                    .with_retry(retry)
                    .build()
                    .map_err(failed)?,
            ),
            Kind::Azure => Arc::new(
                MicrosoftAzureBuilder::from_env()
                    .with_config(AzureConfigKey::Client(timeout), REQUEST)
                    .with_container_name(&self.bucket)
                    .with_retry(retry)
                    .build()
                    .map_err(failed)?,
            ),
        };
        Ok(Opened { objects, prefix })
    }

    fn folder(&self, create: bool) -> Result<LocalFileSystem> {
        let failed = |call, error: &io::Error| BucketError::Service {
            call,
            object: self.url(),
            why: error.to_string(),
            denied: error.kind() == io::ErrorKind::PermissionDenied,
        };
        // Memory of processes is nobody else's to read.
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        if create {
            DirBuilder::new()
                .recursive(true)
                .create(&self.prefix)
                .map_err(|error| failed("make the folder", &error))?;
        }
        match std::fs::read_dir(&self.prefix) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BucketError::Empty { url: self.url() });
            }
            Err(error) => return Err(failed("open the folder", &error)),
        }
        let folder = LocalFileSystem::new_with_prefix(&self.prefix)
            .map_err(|error| BucketError::service("open the folder", &self.url(), &error))?;
        // Pushed is what is durable.
        Ok(folder.with_fsync(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(kind: Kind, bucket: &str, prefix: &str) -> Place {
        Place {
            kind,
            bucket: bucket.into(),
            prefix: prefix.into(),
        }
    }

    #[test]
    fn urls_are_taken_apart() {
        let parse = |url| Place::parse(url).unwrap();
        assert_eq!(parse("s3://b/a/c/"), place(Kind::S3, "b", "a/c"));
        assert_eq!(parse("s3://b"), place(Kind::S3, "b", ""));
        assert_eq!(parse("gs://b/x"), place(Kind::Google, "b", "x"));
        assert_eq!(parse("az://c/x"), place(Kind::Azure, "c", "x"));
        assert_eq!(parse("file:///srv/k"), place(Kind::File, "", "/srv/k"));
        for url in [
            "",
            "b/c",
            "s3:/b",
            "s3://",
            "s3:///x",
            "http://h/b",
            "file://srv/k",
        ] {
            let error = Place::parse(url).unwrap_err();
            assert!(matches!(error, BucketError::Url { .. }), "{url}");
        }
    }

    #[test]
    fn keys_in_a_url_are_refused_and_not_repeated() {
        for url in [
            "s3://KEY:SECRET@b/p",
            "az://c/p?sig=SECRET",
            "gs://b#SECRET",
        ] {
            let text = Place::parse(url).unwrap_err().to_string();
            assert!(
                !text.contains("SECRET") && text.contains("environment"),
                "{text}"
            );
        }
    }

    #[test]
    fn services_are_got_ready_for_without_a_word_to_them() {
        for url in ["s3://b/p", "gs://b/p"] {
            if let Err(error) = Place::parse(url).unwrap().open(false) {
                // Where there are none, nobody can be talked to.
                assert!(error.to_string().contains("certificate"), "{error}");
            }
        }
        assert!(Place::parse("s3://b/a//c").unwrap().open(false).is_err());
    }

    #[test]
    fn a_folder_that_is_not_there_is_made_only_to_push_into() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}/a/b", folder.path().display());
        let place = Place::parse(&url).unwrap();
        assert!(place.open(false).is_err());
        assert!(place.open(true).is_ok());
        assert!(place.open(false).is_ok());
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let place = Place::parse(&format!("file://{}", file.display())).unwrap();
        let error = place.open(false).err().expect("it is no folder");
        assert!(matches!(error, BucketError::Service { .. }), "{error}");
    }
}
