package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/refstore"
)

// TestEndedApprovalsStayEnded adds a value beside one that is good and one whose approval has ended.
func TestEndedApprovalsStayEnded(t *testing.T) {
	records := []refstore.Record{
		{Name: "tpm_pcr04", Value: json.RawMessage(`["good"]`), Expiration: time.Now().Add(time.Hour)},
		{Name: "tpm_pcr09", Value: json.RawMessage(`["ended"]`), Expiration: time.Now().Add(-time.Hour)},
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(records); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	c, err := client.New(client.Config{URL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	merged, err := mergeValues(t.Context(), c, map[string][]string{"tpm_pcr04": {"new"}, "tpm_pcr09": {"new"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{"tpm_pcr04": {"good", "new"}, "tpm_pcr09": {"new"}} {
		if got, _ := merged[name].([]string); !slices.Equal(got, want) {
			t.Errorf("%s would be registered as %v, want %v", name, merged[name], want)
		}
	}
}
