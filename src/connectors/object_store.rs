//! An object store as state store: S3, Google Cloud Storage, Azure, or a directory.

use super::StoreKind;
use crate::settings::keys;

pub const STORE: StoreKind = StoreKind {
    name: "object_store",
    keys: keys! {
        "state.endpoint": "Object store: URL of the server, such as `https://minio.internal:9000`, for S3-compatible servers and private endpoints. Without it, the provider's, or that of the environment (`AWS_ENDPOINT_URL`)."
        "state.region": "Object store, S3: region of the bucket. Without it, that of the environment (`AWS_REGION`), or `us-east-1`."
        "state.access_key_id": "Object store, S3: access key id. Without it, the credentials of the environment (`AWS_ACCESS_KEY_ID`), of a service account (`AWS_WEB_IDENTITY_TOKEN_FILE`, containers on ECS and EKS) or of the machine's role."
        "state.secret_access_key": "Object store, S3: secret access key. Prefer the file or the environment variable `HEADWATER__STATE__SECRET_ACCESS_KEY`."
        "state.secret_access_key_file": "Object store, S3: file that contains the secret access key."
        "state.service_account_file": "Object store, Google Cloud Storage: JSON file with the key of a service account. Without it, the credentials of the environment (`GOOGLE_APPLICATION_CREDENTIALS`) or of the machine."
        "state.account": "Object store, Azure: storage account. Without it, that of the environment (`AZURE_STORAGE_ACCOUNT_NAME`)."
        "state.account_key": "Object store, Azure: key of the storage account. Without it, the credentials of the environment (`AZURE_STORAGE_ACCOUNT_KEY`, a client secret, a federated token) or of the machine's identity."
        "state.account_key_file": "Object store, Azure: file that contains the key of the storage account."
        "state.allow_http" = "false": "Object store: permits an `endpoint` that begins with `http://`. Checkpoints are then sent without encryption, so only for tests and networks that encrypt themselves."
        "state.retry_timeout" = "\"1m\"": "Object store: maximum time for which a request without an answer is repeated, at least `1s`. Meanwhile checkpoints wait and warnings say why; then the run ends with exit code 1, and a start resumes from the last checkpoint."
    },
    read: read::store,
};

#[cfg(not(feature = "object-store"))]
mod read {
    use crate::settings::{Diagnostics, Section};
    use crate::state::StateConfig;

    pub fn store(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<StateConfig> {
        let message = "this program was built without object stores: build it with `cargo build --release --features \
                       object-store`";
        section.report_error("kind", message, diagnostics);
        let own = super::STORE.keys.iter().map(|key| key.path.trim_start_matches("state."));
        for key in own.chain(["url", "ca_file"]) {
            // The key is not unknown.
            section.item(key);
        }
        None
    }
}

#[cfg(feature = "object-store")]
mod read {
    use crate::client::Endpoint;
    use crate::settings::{Diagnostics, Section, millis, secrets};
    use crate::state::StateConfig;
    use crate::state::object::{Access, ObjectStoreConfig, ObjectUrl, Provider};

    /// The keys that only one provider has, with the beginning of its URLs.
    const OWN_KEYS: [(Provider, &str, &[&str]); 3] = [
        (Provider::S3, "s3://", &["region", "access_key_id", "secret_access_key", "secret_access_key_file"]),
        (Provider::Gcs, "gs://", &["service_account_file"]),
        (Provider::Azure, "az://", &["account", "account_key", "account_key_file"]),
    ];

    pub fn store(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<StateConfig> {
        let url = url(section, diagnostics);
        let ca_file = section.file("ca_file", diagnostics);
        let allow_http = section.bool("allow_http", diagnostics);
        let endpoint = endpoint(section, allow_http, diagnostics);
        let retry_timeout = section.duration("retry_timeout", 1000, diagnostics).map(millis);
        let access = access(section, url.as_ref().map(|url| url.provider), diagnostics);
        Some(StateConfig::Object(Box::new(ObjectStoreConfig {
            url: url?,
            endpoint,
            access: access?,
            allow_http: allow_http?,
            ca_file,
            retry_timeout: retry_timeout?,
        })))
    }

    fn url(section: &mut Section<'_>, diagnostics: &mut Diagnostics) -> Option<ObjectUrl> {
        let Some(item) = section.item("url") else {
            let missing = "state in an object store needs a url, such as `s3://bucket/prefix`";
            section.report_error("url", missing, diagnostics);
            return None;
        };
        match ObjectUrl::parse(item.node.text().unwrap_or_default()) {
            Ok(_) => section.get_text("url", diagnostics, |text| ObjectUrl::parse(text.unwrap_or_default())),
            // The text may have a secret in it, and is not repeated.
            Err(message) => {
                section.report_error("url", message, diagnostics);
                None
            }
        }
    }

    fn endpoint(
        section: &mut Section<'_>,
        allow_http: Option<bool>,
        diagnostics: &mut Diagnostics,
    ) -> Option<String> {
        let text = section.item("endpoint")?.node.text().unwrap_or_default();
        if let Err(message) = Endpoint::parse(text) {
            let message = message.replace("https://example.com/hook", "https://minio.internal:9000");
            section.report_error(
                "endpoint",
                message.replace("`headers.authorization`", "keys of its own"),
                diagnostics,
            );
            return None;
        }
        if text.starts_with("http://") && allow_http == Some(false) {
            let message = "the endpoint is not encrypted: use https://, or, for tests and networks that encrypt themselves, \
                           set `state.allow_http = true`";
            section.report_error("endpoint", message, diagnostics);
            return None;
        }
        section.text("endpoint", diagnostics).map(|text| text.trim_end_matches('/').to_owned())
    }

    /// Reads the keys of the provider of the URL, and refuses those of others.
    fn access(
        section: &mut Section<'_>,
        provider: Option<Provider>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Access> {
        for (_, scheme, keys) in OWN_KEYS.iter().filter(|(owner, ..)| provider != Some(*owner)) {
            for key in *keys {
                if section.item(key).is_some() && provider.is_some() {
                    let message = format!("applies to `{scheme}` only: remove this key");
                    section.report_error(key, message, diagnostics);
                }
            }
        }
        Some(match provider? {
            Provider::S3 => {
                let region = section.text("region", diagnostics);
                let id = section.text("access_key_id", diagnostics);
                let secret = secrets::text(section, "secret_access_key", diagnostics);
                let has_secret = section.has("secret_access_key") || section.has("secret_access_key_file");
                if section.has("access_key_id") != has_secret {
                    let key = if has_secret { "secret_access_key" } else { "access_key_id" };
                    let message = "`access_key_id` and `secret_access_key`, or `secret_access_key_file`, must be set together";
                    section.report_error(key, message, diagnostics);
                }
                Access::S3 { region, keys: id.zip(secret) }
            }
            Provider::Gcs => Access::Gcs(section.file("service_account_file", diagnostics)),
            Provider::Azure => Access::Azure {
                account: section.text("account", diagnostics),
                key: secrets::text(section, "account_key", diagnostics),
            },
            Provider::Directory => Access::Directory,
        })
    }
}
