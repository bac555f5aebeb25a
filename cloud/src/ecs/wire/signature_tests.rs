use super::*;

fn v1<'a>(method: &'a str, query: &'a str, headers: &'a HeaderMap) -> Incoming<'a> {
    Incoming { method, path: "/", query, headers, body: b"" }
}

fn claim(incoming: &Incoming<'_>) -> Result<Claim, Refusal> {
    Claim::read(incoming, &Decoded::new(incoming).unwrap())
}

/// The request of Alibaba's documentation, with its signature.
const OFFICIAL: &str = "AccessKeyId=testid&Action=DescribeRegions&Format=XML&\
    SignatureMethod=HMAC-SHA1&SignatureNonce=3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf&\
    SignatureVersion=1.0&Timestamp=2016-02-23T12%3A46%3A24Z&Version=2014-05-26&\
    Signature=OLeaidS1JvxuMvnyHOwuJ%2BuX5qY%3D";

#[test]
fn the_official_vector_holds() {
    let headers = HeaderMap::new();
    let claim = claim(&v1("GET", OFFICIAL, &headers)).unwrap();
    assert_eq!(claim.key, "testid");
    assert_eq!(claim.action, "DescribeRegions");
    assert_eq!(
        claim.to_sign,
        "GET&%2F&AccessKeyId%3Dtestid%26Action%3DDescribeRegions%26Format%3DXML%26\
         SignatureMethod%3DHMAC-SHA1%26SignatureNonce%3D3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf%26\
         SignatureVersion%3D1.0%26Timestamp%3D2016-02-23T12%253A46%253A24Z%26Version%3D2014-05-26"
    );
    assert!(claim.is_signed_with("testsecret"));
    assert!(!claim.is_signed_with("testsecres"));
}
