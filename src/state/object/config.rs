//! Settings of object stores.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use headwater_sinks::Secret;

/// An object store as state store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStoreConfig {
    /// The bucket and the beginning of the names of objects.
    pub url: ObjectUrl,
    /// The URL of the server; None for that of the provider.
    pub endpoint: Option<String>,
    /// The credentials, and what is needed beside them.
    pub access: Access,
    /// True if requests need not be encrypted.
    pub allow_http: bool,
    /// The file of the only certificate authorities that are trusted; None for those of the system.
    pub ca_file: Option<PathBuf>,
    /// The time for which an operation is repeated before the run ends.
    pub retry_timeout: Duration,
}

/// The credentials of a provider. Those that are None are taken from the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// S3, and what is compatible with it.
    S3 {
        /// The region.
        region: Option<String>,
        /// The access key id and the secret access key.
        keys: Option<(String, Secret)>,
    },
    /// Google Cloud Storage: the file with the key of a service account.
    Gcs(Option<PathBuf>),
    /// Azure Blob Storage.
    Azure {
        /// The storage account.
        account: Option<String>,
        /// The key of the account.
        key: Option<Secret>,
    },
    /// A directory has none.
    Directory,
}

/// The provider of an object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// S3, and what is compatible with it.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
    /// A directory.
    Directory,
}

/// The place of objects: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `file:///DIRECTORY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectUrl {
    /// The provider.
    pub provider: Provider,
    /// The bucket; of a directory, empty.
    pub bucket: String,
    /// The beginning of the names of objects, without slashes around it; of a directory, its path.
    pub prefix: String,
}

const SCHEMES: [(&str, Provider); 4] = [
    ("s3://", Provider::S3),
    ("gs://", Provider::Gcs),
    ("az://", Provider::Azure),
    ("file://", Provider::Directory),
];

impl ObjectUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// If it is none: the reason, without any part of the text, which may be a secret.
    pub fn parse(text: &str) -> Result<ObjectUrl, String> {
        let found =
            SCHEMES.iter().find_map(|(scheme, provider)| Some((*provider, text.strip_prefix(scheme)?)));
        let Some((provider, rest)) = found else {
            return Err("expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or \
                        file:///DIRECTORY"
                .to_owned());
        };
        if provider == Provider::Directory {
            return match rest.starts_with('/') && rest.len() > 1 {
                true => Ok(ObjectUrl { provider, bucket: String::new(), prefix: rest.to_owned() }),
                false => Err("expected an absolute path, such as file:///var/lib/headwater".to_owned()),
            };
        }
        if rest.contains(['@', '?', '#', ':']) {
            return Err(
                "expected a bucket and a prefix without credentials, port or parameters: credentials and \
                        `endpoint` are keys of their own"
                    .to_owned(),
            );
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let is_usual =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.=".contains(&byte));
        let is_segment =
            |segment: &str| !segment.is_empty() && segment != "." && segment != ".." && is_usual(segment);
        if bucket.is_empty() || !is_usual(bucket) || !(prefix.is_empty() || prefix.split('/').all(is_segment))
        {
            return Err(
                "expected a bucket, and a prefix of letters, digits, `-`, `_`, `.`, `=` and `/`".to_owned()
            );
        }
        Ok(ObjectUrl { provider, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for ObjectUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, _) =
            SCHEMES.iter().find(|(_, provider)| *provider == self.provider).expect("each provider has one");
        let joint = if self.bucket.is_empty() || self.prefix.is_empty() { "" } else { "/" };
        write!(f, "{scheme}{}{joint}{}", self.bucket, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_a_bucket_and_a_prefix_of_usual_letters() {
        for (text, bucket, prefix) in [
            ("s3://states", "states", ""),
            ("s3://states/", "states", ""),
            ("gs://states/prod/eu", "states", "prod/eu"),
            ("az://states/a=b/", "states", "a=b"),
            ("file:///var/lib/x", "", "/var/lib/x"),
        ] {
            let url = ObjectUrl::parse(text).expect(text);
            assert_eq!((&*url.bucket, &*url.prefix), (bucket, prefix), "{text}");
            assert_eq!(url.to_string(), text.trim_end_matches('/'));
        }
        for wrong in [
            "",
            "states",
            "http://states",
            "s3://",
            "s3:///a",
            "s3://a//b",
            "s3://a/../b",
            "s3://a/b c",
            "file://a",
            "s3://hunter2:hunter2@a/b",
            "s3://a/b?hunter2",
            "s3://a#hunter2",
            "file:///",
        ] {
            let message = ObjectUrl::parse(wrong).expect_err(wrong);
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
