package appraise

import (
	"strings"
	"testing"
)

// A stack overflow cannot be recovered from: without a bound this test does not fail, it ends the process.
func TestInitDataClaimsDeepKeys(t *testing.T) {
	claims := InitDataClaims(map[string]string{
		"aa.toml":  "token_configs.kbs.url = 'https://kbs'",
		"cdh.toml": "a" + strings.Repeat(".a", 1<<20) + " = 1",
	})
	if _, ok := claims["aa.toml"].(map[string]any); !ok {
		t.Errorf("aa.toml is %T, want an object", claims["aa.toml"])
	}
	if _, ok := claims["cdh.toml"].(string); !ok {
		t.Errorf("cdh.toml nested a million levels deep is %T, want its text", claims["cdh.toml"])
	}
}
