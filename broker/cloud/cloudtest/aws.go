package cloudtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// The region and the key of the fake.
const (
	Region = "eu-central-1"
	KeyARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	Role   = "arn:aws:iam::111122223333:role/broker"
)

// AWSSecret is a secret; of Binary and Text one is nil.
type AWSSecret struct {
	Binary []byte
	Text   *string
}

// AWS is Secrets Manager, KMS and STS in one.
type AWS struct {
	Server
	// Service is what requests have to be signed for.
	Service string
	Keys    map[string]AWSKey
	Secrets map[string]AWSSecret
	// Denied are secrets that nobody may read; PageSize is how many names a page has.
	Denied   map[string]bool
	PageSize int
	// WebToken is the token that STS believes, Temporary what it gives.
	WebToken  string
	Temporary AWSKey

	kms gcm
}

// NewAWS starts a fake that knows one caller with long-lived keys.
func NewAWS(t testing.TB, service string) *AWS {
	s := &AWS{Service: service, Keys: map[string]AWSKey{"AKIDEXAMPLE123456": {ID: "AKIDEXAMPLE123456", Secret: "wJalrXUtnFEMI/K7MDENG"}},
		Secrets: map[string]AWSSecret{}, Denied: map[string]bool{}, PageSize: 2, kms: newGCM(t)}
	s.start(t, true, s.serve)
	return s
}

// CredentialsFile is a file of profiles with the first caller.
func CredentialsFile(t testing.TB) string {
	return File(t, "credentials", "# comment\n[other]\naws_access_key_id = WRONGWRONGWRONG1\naws_secret_access_key = wrong\n\n"+
		"[default]\naws_access_key_id = AKIDEXAMPLE123456\naws_secret_access_key=wJalrXUtnFEMI/K7MDENG\nregion = ignored\n")
}

func (s *AWS) serve(w http.ResponseWriter, r *http.Request, body []byte) {
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		s.sts(w, body)
		return
	}
	action := r.Header.Get("X-Amz-Target")
	s.Calls = append(s.Calls, action)
	if code := checkSignature(r, body, s.Keys, Region, s.Service, s.now()); code != "" {
		s.refuse(w, 400, code)
		return
	}
	var in struct {
		SecretID          string `json:"SecretId"`
		NextToken         string
		KeyID             string `json:"KeyId"`
		Plaintext         []byte
		CiphertextBlob    []byte
		EncryptionContext map[string]string
		Filters           []struct {
			Key    string
			Values []string
		}
	}
	if json.Unmarshal(body, &in) != nil {
		s.refuse(w, 400, "SerializationException")
		return
	}
	aad, _ := json.Marshal(in.EncryptionContext) // in the order of names
	switch action {
	case "secretsmanager.GetSecretValue":
		v, ok := s.Secrets[in.SecretID]
		switch {
		case s.Denied[in.SecretID]:
			s.refuse(w, 400, "AccessDeniedException")
		case !ok:
			s.refuse(w, 400, "ResourceNotFoundException")
		default:
			answer(w, 200, map[string]any{"Name": in.SecretID, "SecretBinary": v.Binary, "SecretString": v.Text, "CreatedDate": 1.5e9})
		}
	case "secretsmanager.ListSecrets":
		var names []map[string]string
		var all []string
		for name := range s.Secrets {
			if len(in.Filters) == 0 || strings.HasPrefix(name, in.Filters[0].Values[0]) {
				all = append(all, name)
			}
		}
		slices.Sort(all)
		slices.Reverse(all)
		from := 0
		fmt.Sscan(in.NextToken, &from)
		for _, name := range all[from:min(from+s.PageSize, len(all))] {
			names = append(names, map[string]string{"Name": name})
		}
		next := ""
		if from+s.PageSize < len(all) {
			next = fmt.Sprint(from + s.PageSize)
		}
		answer(w, 200, map[string]any{"SecretList": names, "NextToken": next})
	case "TrentService.Encrypt":
		answer(w, 200, map[string]any{"KeyId": KeyARN, "CiphertextBlob": s.kms.encrypt(in.Plaintext, string(aad))})
	case "TrentService.Decrypt":
		plain, err := s.kms.decrypt(in.CiphertextBlob, string(aad))
		if err != nil || in.KeyID != KeyARN {
			s.refuse(w, 400, "InvalidCiphertextException")
			return
		}
		answer(w, 200, map[string]any{"KeyId": KeyARN, "Plaintext": plain})
	default:
		s.refuse(w, 400, "UnknownOperationException")
	}
}

func (s *AWS) refuse(w http.ResponseWriter, status int, code string) {
	answer(w, status, map[string]string{"__type": "com.amazonaws#" + code, "message": "leak-777333"})
}

func (s *AWS) sts(w http.ResponseWriter, body []byte) {
	form, err := url.ParseQuery(string(body))
	s.Calls = append(s.Calls, "sts."+form.Get("Action"))
	if err != nil || form.Get("Action") != "AssumeRoleWithWebIdentity" || form.Get("Version") != "2011-06-15" || form.Get("RoleArn") != Role ||
		form.Get("RoleSessionName") == "" || form.Get("WebIdentityToken") != s.WebToken {
		w.WriteHeader(400)
		fmt.Fprint(w, `<ErrorResponse><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code>`+
			`<Message>leak-777333</Message></Error></ErrorResponse>`)
		return
	}
	s.Keys[s.Temporary.ID] = s.Temporary
	fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">`+
		`<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey>`+
		`<SessionToken>%s</SessionToken><Expiration>%s</Expiration>`+
		`</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
		s.Temporary.ID, s.Temporary.Secret, s.Temporary.Session, s.Temporary.Expires.UTC().Format(time.RFC3339))
}

// Metadata is the metadata service of an instance, version 2, and the agent of a container.
type Metadata struct {
	Server
	Give           AWSKey
	ContainerToken string
}

// NewMetadata starts a Metadata that gives k.
func NewMetadata(t testing.TB, k AWSKey) *Metadata {
	s := &Metadata{Give: k, ContainerToken: "container-token"}
	s.start(t, false, s.serve)
	return s
}

func (s *Metadata) serve(w http.ResponseWriter, r *http.Request, _ []byte) {
	s.Calls = append(s.Calls, r.Method+" "+r.URL.Path)
	const place = "/latest/meta-data/iam/security-credentials/"
	give := map[string]any{"Code": "Success", "AccessKeyId": s.Give.ID, "SecretAccessKey": s.Give.Secret, "Token": s.Give.Session,
		"Expiration": s.Give.Expires.UTC().Format(time.RFC3339)}
	switch {
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token" && r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") != "":
		fmt.Fprint(w, "imds-token")
	case r.URL.Path == "/v1/credentials" && r.Header.Get("Authorization") == s.ContainerToken:
		delete(give, "Code")
		answer(w, 200, give)
	case r.Method != http.MethodGet || r.Header.Get("X-aws-ec2-metadata-token") != "imds-token":
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == place:
		fmt.Fprint(w, "broker-role")
	case r.URL.Path == place+"broker-role":
		answer(w, 200, give)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}
