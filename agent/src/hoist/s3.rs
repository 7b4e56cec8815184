//! Objects from a server that speaks S3, for the process that fetches: `object_store` knows the
//! protocol and signs, our own [`Client`] does the asking, so there is one HTTP client and one TLS.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use http_body_util::BodyExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore as _, RetryConfig};
use url::Url;

use super::download::{Begin, Piece, Resume, Trouble};
use super::http::{Client, Failure};
use super::network::{S3, is_this_machine};

/// Our client, as `object_store` wants it.
#[derive(Debug, Clone)]
struct Transport {
    client: Client,
    /// The server that was configured is on this machine.
    may_be_here: bool,
}

#[async_trait::async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.client.send(request, self.may_be_here).await;
        let answer = answer.map_err(|failure| HttpError::new(HttpErrorKind::Connect, failure))?;
        let (parts, body) = answer.into_parts();
        let body = body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// The object `key` of `bucket`, or what is left of it.
pub(super) async fn get(
    client: Client,
    s3: &S3,
    bucket: &str,
    key: &str,
    resume: Option<Resume>,
) -> Result<(Begin, BoxStream<'static, Piece>), Trouble> {
    let store = open(client, s3, bucket)?;
    let path = Path::parse(key).map_err(|error| Trouble::from(Failure::new(&error)))?;
    if let Some(resume) = resume {
        let options = GetOptions {
            range: Some(GetRange::Offset(resume.offset)),
            if_match: Some(resume.validator),
            ..GetOptions::default()
        };
        // Whatever is wrong with the rest, the whole is asked for.
        if let Ok(rest) = store.get_opts(&path, options).await
            && rest.range.start == resume.offset
        {
            return Ok(started(rest, resume.offset));
        }
    }
    match store.get_opts(&path, GetOptions::default()).await {
        Ok(whole) => Ok(started(whole, 0)),
        Err(object_store::Error::NotFound { .. }) => Err(Trouble::NotFound),
        Err(error) => Err(Failure::new(&error).into()),
    }
}

fn started(result: object_store::GetResult, offset: u64) -> (Begin, BoxStream<'static, Piece>) {
    let begin = Begin {
        offset,
        total: Some(result.meta.size),
        validator: result.meta.e_tag.clone(),
        content_type: String::new(),
    };
    let body = result.into_stream();
    let body = body.map(|piece| piece.map_err(|error| Failure::new(&error)));
    (begin, body.boxed())
}

fn open(client: Client, s3: &S3, bucket: &str) -> Result<AmazonS3, Failure> {
    let endpoint = s3.endpoint.as_deref().map(Url::parse).transpose();
    let endpoint = endpoint.map_err(|error| {
        Failure::refused(format!(
            "the address of the S3 server cannot be used: {error}"
        ))
    })?;
    let host = endpoint.as_ref().and_then(Url::host);
    let transport = Transport {
        client,
        may_be_here: host.is_some_and(|host| is_this_machine(&host)),
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(s3.region.as_deref().unwrap_or("us-east-1"))
        .with_virtual_hosted_style_request(s3.virtual_hosted)
        // Whoever configured such an address meant it.
        .with_allow_http(true)
        // Trying again, and going on where it stopped, is the agent's.
        .with_retry(RetryConfig {
            max_retries: 0,
            retry_timeout: Duration::from_secs(1),
            ..RetryConfig::default()
        })
        .with_http_connector(transport);
    if let Some(endpoint) = &endpoint {
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    match (&s3.access_key_id, &s3.secret_access_key) {
        (Some(id), Some(secret)) => {
            builder = builder
                .with_access_key_id(id)
                .with_secret_access_key(secret);
            if let Some(token) = &s3.session_token {
                builder = builder.with_token(token);
            }
        }
        // Never the machine's own credentials: its metadata service is not asked.
        _ => builder = builder.with_skip_signature(true),
    }
    builder.build().map_err(|error| Failure::new(&error))
}
