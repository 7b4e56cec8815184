//! A connection that is turned into one of another protocol.

use http::{HeaderValue, Method, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::{Api, chain, read, refused, whole};
use crate::error::{Code, Failure, Result};

impl Api {
    /// Asks for something whose bytes then go to and fro over the connection.
    pub(crate) async fn turn(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<TokioIo<Upgraded>> {
        let mut request = Self::request(Method::POST, path, None, whole(Vec::new()))?;
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
        let response = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, body) = response.into_parts();
            let bytes = read(body).await?;
            if parts.status.is_success() {
                return Err(Failure::failed(format!(
                    "{} did not turn the connection into {protocol}",
                    self.place()
                ))
                .hint("is it a platctrl server of this version, and does a proxy stand between?"));
            }
            return Err(refused(parts.status, &bytes));
        }
        let turned = hyper::upgrade::on(response).await.map_err(|error| {
            let why = format!("{} broke off: {}", self.place(), chain(&error));
            Failure::new(Code::Unreachable, why)
        })?;
        Ok(TokioIo::new(turned))
    }
}
