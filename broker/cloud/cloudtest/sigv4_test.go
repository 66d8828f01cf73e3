package cloudtest

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// The requests and signatures are those of AWS's published test suite for Signature Version 4.
func TestPublishedSignatures(t *testing.T) {
	const secret, date, scope = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "20150830T123600Z", "20150830/us-east-1/service/aws4_request"
	for _, c := range []struct {
		name, method, target, body string
		headers                    map[string][]string
		signed, want               string
		sign                       bool // the signer in use can be given this request
	}{
		{"get-vanilla", "GET", "/", "", nil, "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31", true},
		{"post-vanilla", "POST", "/", "", nil, "host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b", true},
		{"get-vanilla-query-order-key-case", "GET", "/?Param2=value2&Param1=value1", "", nil, "host;x-amz-date",
			"b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500", true},
		{"get-header-key-duplicate", "GET", "/", "", map[string][]string{"My-Header1": {"value2", "value2", "value1"}},
			"host;my-header1;x-amz-date", "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea", true},
		{"post-header-key-sort", "POST", "/", "", map[string][]string{"My-Header1": {"value1"}}, "host;my-header1;x-amz-date",
			"c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c", true},
		{"post-x-www-form-urlencoded", "POST", "/", "Param1=value1", map[string][]string{"Content-Type": {"application/x-www-form-urlencoded"}},
			"content-type;host;x-amz-date", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a", false},
	} {
		r, err := http.NewRequest(c.method, "https://example.amazonaws.com"+c.target, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range c.headers {
			r.Header[k] = v
		}
		r.Header.Set("X-Amz-Date", date)
		if got := Signature(r, []byte(c.body), strings.Split(c.signed, ";"), date, scope, secret); got != c.want {
			t.Errorf("%s: signature %s, want %s", c.name, got, c.want)
		}
		if !c.sign { // it signs the length, too
			continue
		}
		at, err := time.Parse("20060102T150405Z", date)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Del("X-Amz-Date")
		err = v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: secret}, r,
			hexSum([]byte(c.body)), "service", "us-east-1", at)
		if err != nil || !strings.HasSuffix(r.Header.Get("Authorization"), "Signature="+c.want) {
			t.Errorf("%s: the signer in use makes %s, %v", c.name, r.Header.Get("Authorization"), err)
		}
	}
}
