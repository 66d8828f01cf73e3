package broker

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/cloister/cloister/broker/resource"
)

// TestResourcePrefix: the first parts of a path list what is below them, with and without a slash at their end.
func TestResourcePrefix(t *testing.T) {
	w := newWorld(t, nil)
	w.must(w.admin.PutResource(t.Context(), "other/key/1", []byte("x")))
	for _, prefix := range []string{"other", "other/", "other/key/"} {
		status, answer := w.rootCall("GET", "/cloister/v1/resources?prefix="+prefix, "")
		var list []resource.Info
		if err := json.Unmarshal(answer, &list); status != http.StatusOK || err != nil || len(list) != 1 || list[0].Path != "other/key/1" {
			t.Errorf("below %q: %d %s", prefix, status, answer)
		}
	}
	if status, answer := w.rootCall("GET", "/cloister/v1/resources?prefix=../", ""); status != http.StatusBadRequest {
		t.Errorf("below ..: %d %s", status, answer)
	}
}
