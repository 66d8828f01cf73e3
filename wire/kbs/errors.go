package kbs

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

const errorPrefix = "https://github.com/confidential-containers/kbs/errors/"

// Names of errors, as they end ErrorInformation.Type.
const (
	ErrorInvalidRequestPath = "InvalidRequestPath"
	ErrorPluginNotFound     = "PluginNotFound"
	ErrorAttestation        = "AttestationError"
	ErrorAdminAuthAccess    = "AdminAuthAccess"
	ErrorAdminAuthPlugin    = "AdminAuthInitialization"
	ErrorTokenNotFound      = "TokenNotFound"
	ErrorTokenVerifier      = "TokenVerifierError"
	ErrorPolicyDeny         = "PolicyDeny"
	ErrorParsePolicy        = "ParsePolicyError"
	ErrorPolicyEngine       = "PolicyEngineError"
	ErrorPluginInternal     = "PluginInternalError"
	ErrorJWE                = "JweError"
	ErrorRVPS               = "RvpsError"
)

// MaxErrorBody bounds an error body that ParseError reads.
const MaxErrorBody = 64 << 10

// ErrorInformation is the body of every refusal. It is an error whose text is the
// detail, so that a refusal explains itself to whoever finally sees it.
type ErrorInformation struct {
	Type   string `json:"type"`
	Detail string `json:"detail"`
}

// NewError makes the body for the named error.
func NewError(name, detail string) *ErrorInformation {
	return &ErrorInformation{Type: errorPrefix + name, Detail: detail}
}

// Errorf is NewError with a formatted detail.
func Errorf(name, format string, args ...any) *ErrorInformation {
	return NewError(name, fmt.Sprintf(format, args...))
}

// Name is the last part of Type, such as "PolicyDeny".
func (e *ErrorInformation) Name() string {
	return e.Type[strings.LastIndexByte(e.Type, '/')+1:]
}

func (e *ErrorInformation) Error() string {
	if e.Detail == "" {
		return e.Name()
	}
	return e.Detail
}

// ParseError reads an error body. Text that is no such body is an error itself.
func ParseError(body []byte) (*ErrorInformation, error) {
	if len(body) > MaxErrorBody {
		return nil, fmt.Errorf("reading the broker's error: %d bytes exceed the limit of %d", len(body), MaxErrorBody)
	}
	var e ErrorInformation
	if err := json.Unmarshal(body, &e); err != nil {
		return nil, fmt.Errorf("reading the broker's error: %w", err)
	}
	if e.Type == "" && e.Detail == "" {
		return nil, errors.New("reading the broker's error: neither type nor detail is given")
	}
	return &e, nil
}
