//! What an answer of S3 means for the vCon, and what a person can do about it.
//!
//! | answer | class |
//! |---|---|
//! | 413, EntityTooLarge, MaxMessageLengthExceeded: the document is too large for it | refused |
//! | InvalidObjectState: this object was moved to an archive | refused |
//! | AccessDenied at reading: the object may just not be there | permanent |
//! | all others: refused or expired keys (403), a missing bucket or right, another region (301, 400), a proxy or no S3 at all (404, 405, 501), too many requests (429, SlowDown), 5xx, … | transient |
//!
//! No answer at all is always the fault of the place: the network, the server, its certificate.

/// Whether the vCon at hand is to blame for an answer.
pub(super) fn is_the_vcons(status: u16, code: &str) -> bool {
    status == 413
        || matches!(
            code,
            "EntityTooLarge" | "MaxMessageLengthExceeded" | "InvalidObjectState"
        )
}

/// What a person can do about an answer.
pub(super) fn advice(status: u16, code: &str) -> Option<&'static str> {
    Some(match (status, code) {
        (_, "NoSuchBucket") => "create the bucket, or mend `aws_bucket`",
        (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch") => {
            "see to `aws_access_key_id` and `aws_secret_access_key`"
        }
        (_, "ExpiredToken" | "InvalidToken") => "see to the keys and `aws_session_token`",
        (_, "AccessDenied" | "AllAccessDisabled" | "AccountProblem") => {
            "allow these keys to get, put and delete objects in the bucket"
        }
        (_, "RequestTimeTooSkewed") => "set this machine's clock",
        (301 | 307, _) | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed") => {
            "see to `aws_region` and `endpoint_url`"
        }
        (404 | 405 | 501, "") => "this is no S3: see to `endpoint_url`",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_classified_as_the_table_says() {
        for (status, code) in [
            (400, "EntityTooLarge"),
            (413, ""),
            (400, "MaxMessageLengthExceeded"),
            (403, "InvalidObjectState"),
        ] {
            assert!(is_the_vcons(status, code), "{status} {code}");
        }
        for (status, code) in [
            (301, "PermanentRedirect"),
            (400, ""),
            (400, "AuthorizationHeaderMalformed"),
            (400, "BadDigest"),
            (400, "ExpiredToken"),
            (400, "RequestTimeout"),
            (403, "AccessDenied"),
            (403, "InvalidAccessKeyId"),
            (403, "RequestTimeTooSkewed"),
            (403, "SignatureDoesNotMatch"),
            (404, ""),
            (404, "NoSuchBucket"),
            (405, ""),
            (408, ""),
            (409, "OperationAborted"),
            (429, ""),
            (500, "InternalError"),
            (501, "NotImplemented"),
            (503, "SlowDown"),
            (507, ""),
        ] {
            assert!(!is_the_vcons(status, code), "{status} {code}");
        }
    }

    #[test]
    fn what_a_person_can_do_fits_the_answer() {
        let bucket = "create the bucket, or mend `aws_bucket`";
        let keys = "see to `aws_access_key_id` and `aws_secret_access_key`";
        let token = "see to the keys and `aws_session_token`";
        let rights = "allow these keys to get, put and delete objects in the bucket";
        let region = "see to `aws_region` and `endpoint_url`";
        let stranger = "this is no S3: see to `endpoint_url`";
        for (status, code, expected) in [
            (404, "NoSuchBucket", Some(bucket)),
            (403, "InvalidAccessKeyId", Some(keys)),
            (403, "SignatureDoesNotMatch", Some(keys)),
            (400, "ExpiredToken", Some(token)),
            (400, "InvalidToken", Some(token)),
            (403, "AccessDenied", Some(rights)),
            (403, "AllAccessDisabled", Some(rights)),
            (403, "AccountProblem", Some(rights)),
            (
                403,
                "RequestTimeTooSkewed",
                Some("set this machine's clock"),
            ),
            (301, "", Some(region)),
            (307, "TemporaryRedirect", Some(region)),
            (400, "PermanentRedirect", Some(region)),
            (400, "AuthorizationHeaderMalformed", Some(region)),
            (404, "", Some(stranger)),
            (405, "", Some(stranger)),
            (501, "", Some(stranger)),
            (405, "MethodNotAllowed", None),
            (403, "", None),
            (503, "SlowDown", None),
        ] {
            assert_eq!(advice(status, code), expected, "{status} {code}");
        }
    }
}
