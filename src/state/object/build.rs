//! The clients of the providers, as the settings say.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, RetryConfig};

use super::config::{Access, ObjectStoreConfig, Provider};
use crate::client::Client;
use crate::client::pooled::{PooledConnector, RequestFailure};
use crate::state::StateError;

/// The region of S3 if none is set.
const DEFAULT_REGION: &str = "us-east-1";

/// Returns the place of a pipeline's objects as messages name it, and the beginning of their names.
pub fn place(config: &ObjectStoreConfig, pipeline: &str) -> (String, Path) {
    let url = &config.url;
    let mut place = format!("{url}/{pipeline}");
    if let Some(endpoint) = &config.endpoint {
        place += &format!(" at {endpoint}");
    }
    let is_plain = url.prefix.is_empty() || url.provider == Provider::Directory;
    let base = if is_plain { pipeline.to_owned() } else { format!("{}/{pipeline}", url.prefix) };
    (place, Path::from(base))
}

/// Creates the directory, if the objects are files.
pub fn create_directory(config: &ObjectStoreConfig) -> Result<(), StateError> {
    if config.url.provider != Provider::Directory {
        return Ok(());
    }
    headwater_sinks::private::folder(std::path::Path::new(&config.url.prefix)).map_err(|error| {
        StateError::Unavailable { action: format!("create {}", config.url), source: error.into() }
    })
}

/// Returns what to check if a store denies access.
pub fn advice(access: &Access) -> &'static str {
    match access {
        Access::S3 { keys: Some(_), .. } => {
            "check `state.access_key_id` and `state.secret_access_key`, and that they permit to put, get, list and delete \
             objects in the bucket"
        }
        Access::S3 { keys: None, .. } => {
            "set `state.access_key_id` and `state.secret_access_key_file`, or AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, or give the machine or the service account a role that permits to put, get, list and \
             delete objects in the bucket"
        }
        Access::Gcs(_) => {
            "set `state.service_account_file` or GOOGLE_APPLICATION_CREDENTIALS, or give the service account of the \
             machine the role Storage Object User on the bucket"
        }
        Access::Azure { .. } => {
            "set `state.account` and `state.account_key_file`, or AZURE_STORAGE_ACCOUNT_NAME and \
             AZURE_STORAGE_ACCOUNT_KEY, or give the identity of the machine the role Storage Blob Data Contributor"
        }
        Access::Directory => "check the permissions of the directory",
    }
}

/// Returns true if a request for credentials of the machine has failed.
pub fn is_metadata(failure: &RequestFailure) -> bool {
    let text = failure.to_string();
    ["http://169.254.", "http://metadata.google"].iter().any(|host| text.contains(host))
}

/// Creates the client. Requests are repeated by its user.
pub fn store(
    config: &ObjectStoreConfig,
) -> Result<Arc<dyn object_store::ObjectStore>, Box<dyn Error + Send + Sync>> {
    let client = match &config.ca_file {
        Some(file) => Client::with_authorities(file)?,
        None => Client::new()?,
    };
    let connector = PooledConnector::new(client);
    let options = ClientOptions::new().with_allow_http(config.allow_http);
    let retry = RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() };
    let bucket = &config.url.bucket;
    Ok(match &config.access {
        Access::S3 { region, keys } => {
            // Settings of the environment belong to the credentials of the environment.
            let mut builder = match keys {
                Some((id, secret)) => AmazonS3Builder::new()
                    .with_region(DEFAULT_REGION)
                    .with_access_key_id(id)
                    .with_secret_access_key(secret.expose()),
                None => AmazonS3Builder::from_env(),
            };
            builder = builder.with_bucket_name(bucket).with_client_options(options).with_retry(retry);
            if let Some(region) = region {
                builder = builder.with_region(region);
            }
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            Arc::new(builder.with_http_connector(connector).build()?)
        }
        Access::Gcs(file) => {
            let mut builder = match file {
                Some(file) => {
                    GoogleCloudStorageBuilder::new().with_service_account_path(file.to_string_lossy())
                }
                None => GoogleCloudStorageBuilder::from_env(),
            };
            builder = builder.with_bucket_name(bucket).with_client_options(options).with_retry(retry);
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            Arc::new(builder.with_http_connector(connector).build()?)
        }
        Access::Azure { account, key } => {
            let mut builder = match key {
                Some(key) => MicrosoftAzureBuilder::new().with_access_key(key.expose()),
                None => MicrosoftAzureBuilder::from_env(),
            };
            builder = builder.with_container_name(bucket).with_client_options(options).with_retry(retry);
            if let Some(account) = account {
                builder = builder.with_account(account);
            }
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            Arc::new(builder.with_http_connector(connector).build()?)
        }
        Access::Directory => Arc::new(LocalFileSystem::new_with_prefix(&config.url.prefix)?.with_fsync(true)),
    })
}
