package dcap_test

import (
	"context"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/test/fakedcap"
)

func levels(m map[string]any, l ...any) { m["tcbLevels"] = l }

// TestStatus walks the ways in which statuses are found and merged.
func TestStatus(t *testing.T) {
	type change struct {
		body   []byte
		world  func(*fakedcap.World)
		qe     func([]byte)
		status string // or part of an error after "!"
		ids    string
	}
	// Bodies launched on these SVNs; since has the SVNs since a launch on module 3.
	td := func(svn ...byte) []byte { b := fakedcap.TD(nil); copy(b, svn); return b }
	td15 := func(svn ...byte) []byte { b := fakedcap.TD15(nil); copy(b, svn); return b }
	since := func(svn ...byte) []byte { b := td15(3); copy(b[584:], svn); return b }
	at := func(body []byte, offset int) []byte { body[offset] = 1; return body }
	lowest := func(sgx [16]uint8, pcesvn int) func(*fakedcap.World) {
		return func(w *fakedcap.World) {
			levels(w.TCBInfo, fakedcap.PlatformLevel(sgx, [16]uint8{}, pcesvn, "UpToDate"))
		}
	}
	set := func(name string, value any) func(*fakedcap.World) {
		return func(w *fakedcap.World) { w.TCBInfo[name] = value }
	}
	qeSVN := func(n byte) func([]byte) { return func(r []byte) { r[258] = n } }
	platform := func(status string) func(*fakedcap.World) {
		return func(w *fakedcap.World) {
			levels(w.TCBInfo, fakedcap.PlatformLevel(fakedcap.Components, [16]uint8{5, 0, 2}, fakedcap.PCESVN, status, "INTEL-SA-7"))
		}
	}
	modules := func(w *fakedcap.World, i int) map[string]any {
		return w.TCBInfo["tdxModuleIdentities"].([]any)[i].(map[string]any)
	}
	for name, c := range map[string]change{
		"up to date": {status: "UpToDate"},
		"old module": {body: td(3), status: "OutOfDate", ids: "INTEL-SA-3"},
		"old module, configuration": {
			body: td(3), world: platform("ConfigurationNeeded"), status: "OutOfDateConfigurationNeeded", ids: "INTEL-SA-3 INTEL-SA-7",
		},
		"old module, hardening":       {body: td(3), world: platform("SWHardeningNeeded"), status: "OutOfDate", ids: "INTEL-SA-3 INTEL-SA-7"},
		"revoked module":              {body: td(1), status: "!Revoked"},
		"module below levels":         {body: td(0), status: "!TCB_NOT_SUPPORTED"},
		"unknown module":              {body: td(5, 2), status: "!TDX_02"},
		"module 0":                    {body: td(5, 0), status: "UpToDate"},
		"module 0, component 0 low":   {body: td(4, 0), status: "OutOfDate", ids: "INTEL-SA-1 INTEL-SA-2"},
		"module 3":                    {body: td(3, 3), status: "UpToDate"},
		"old late microcode":          {body: td(5, 1, 1), status: "OutOfDate", ids: "INTEL-SA-1 INTEL-SA-2"},
		"module signer":               {body: at(td(5, 1, 2), 64), status: "!MRSIGNERSEAM"},
		"module attributes":           {body: at(td(5, 1, 2), 112), status: "!SEAMATTRIBUTES"},
		"module 0 signer":             {body: at(td(5, 0, 2), 64), status: "!MRSIGNERSEAM"},
		"platform revoked":            {world: platform("Revoked"), status: "!Revoked"},
		"platform status unknown":     {world: platform("Fine"), status: "!Fine"},
		"platform component too low":  {world: lowest([16]uint8{6}, 1), status: "!TCB_NOT_SUPPORTED"},
		"platform last component low": {world: lowest([16]uint8{15: 1}, 1), status: "!TCB_NOT_SUPPORTED"},
		"platform PCESVN too low":     {world: lowest([16]uint8{}, 12), status: "!TCB_NOT_SUPPORTED"},
		"old QE":                      {qe: qeSVN(6), status: "OutOfDate", ids: "INTEL-SA-9"},
		"old QE, configuration": {
			qe: qeSVN(7), world: platform("ConfigurationAndSWHardeningNeeded"), status: "OutOfDateConfigurationNeeded", ids: "INTEL-SA-7 INTEL-SA-9",
		},
		"revoked QE":            {qe: qeSVN(5), status: "!Revoked"},
		"QE below levels":       {qe: qeSVN(3), status: "!TCB_NOT_SUPPORTED"},
		"QE debug":              {qe: func(r []byte) { r[48] |= 2 }, status: "!QE ATTRIBUTES"},
		"QE misc":               {qe: func(r []byte) { r[16] |= 2 }, status: "!QE MISCSELECT"},
		"QE signer":             {qe: func(r []byte) { r[128] ^= 1 }, status: "!QE MRSIGNER"},
		"QE product":            {qe: func(r []byte) { r[256] ^= 1 }, status: "!QE ISVPRODID"},
		"QE mode bit is masked": {qe: func(r []byte) { r[48] &^= 4 }, status: "UpToDate"},

		"relaunch": {body: td15(3), status: "TDRelaunchAdvised", ids: "INTEL-SA-3"},
		"relaunch, configuration": {
			body: td15(3), world: platform("ConfigurationNeeded"), status: "TDRelaunchAdvisedConfigurationNeeded", ids: "INTEL-SA-3 INTEL-SA-7",
		},
		"relaunch, other module now":   {body: since(3, 3), status: "TDRelaunchAdvised", ids: "INTEL-SA-3"},
		"relaunch, module 0 now":       {body: since(5, 0), status: "TDRelaunchAdvised", ids: "INTEL-SA-3"},
		"no relaunch, module 0 is old": {body: since(4, 0), status: "OutOfDate", ids: "INTEL-SA-3"},
		"no relaunch, module is old":   {body: since(4, 1), status: "OutOfDate", ids: "INTEL-SA-3"},
		"no relaunch, module unknown":  {body: since(9, 9), status: "OutOfDate", ids: "INTEL-SA-3"},
		"no relaunch, old microcode":   {body: since(5, 1, 1), status: "OutOfDate", ids: "INTEL-SA-3"},
		"no relaunch, old QE":          {body: td15(3), qe: qeSVN(6), status: "OutOfDate", ids: "INTEL-SA-3 INTEL-SA-9"},
		"no relaunch, old platform":    {body: td15(3), world: platform("OutOfDate"), status: "OutOfDate", ids: "INTEL-SA-3 INTEL-SA-7"},
		"no relaunch needed":           {body: td15(), status: "UpToDate"},

		"other FMSPC":       {world: set("fmspc", "00AABBCC0001"), status: "!FMSPC"},
		"FMSPC in any case": {world: set("fmspc", "00aaBBcc0000"), status: "UpToDate"},
		"other PCE":         {world: set("pceId", "0001"), status: "!PCE id"},
		"TCB info of SGX":   {world: set("id", "SGX"), status: "!TCB info is version 3"},
		"TCB info v2":       {world: set("version", 2), status: "!TCB info is version 2"},
		"TCB type":          {world: set("tcbType", 1), status: "!tcbType"},
		"no levels":         {world: func(w *fakedcap.World) { levels(w.TCBInfo) }, status: "!0 levels"},
		"no module levels":  {world: func(w *fakedcap.World) { levels(modules(w, 1)) }, status: "!0 levels"},
		"no dates":          {world: func(w *fakedcap.World) { delete(w.QEIdentity, "nextUpdate") }, status: "!nextUpdate"},
		"identity of SGX":   {world: func(w *fakedcap.World) { w.QEIdentity["id"] = "QE" }, status: "!TD_QE"},
		"short mask":        {world: func(w *fakedcap.World) { w.QEIdentity["attributesMask"] = "FB" }, status: "!QE ATTRIBUTES"},
		"no product":        {world: func(w *fakedcap.World) { delete(w.QEIdentity, "isvprodid") }, status: "!isvprodid"},
		"no module":         {body: td(5, 0), world: func(w *fakedcap.World) { delete(w.TCBInfo, "tdxModule") }, status: "!tdxModule"},
		"fifteen components": {world: func(w *fakedcap.World) {
			tcb := w.TCBInfo["tcbLevels"].([]any)[0].(map[string]any)["tcb"].(map[string]any)
			tcb["tdxtcbcomponents"] = tcb["tdxtcbcomponents"].([]any)[:15]
		}, status: "!15 tdxtcbcomponents"},
		"no TDX components": {world: func(w *fakedcap.World) {
			delete(w.TCBInfo["tcbLevels"].([]any)[1].(map[string]any)["tcb"].(map[string]any), "tdxtcbcomponents")
		}, status: "!no tdxtcbcomponents"},
	} {
		t.Run(name, func(t *testing.T) {
			w := fakedcap.New(t, now)
			if c.world != nil {
				c.world(w)
			}
			if c.body == nil {
				c.body = td()
			}
			r, err := dcap.Verify(context.Background(), parse(t, w.Quote(fakedcap.Spec{Body: c.body, EditQE: c.qe})), options(w))
			if fault, ok := strings.CutPrefix(c.status, "!"); ok {
				if err == nil || !strings.Contains(err.Error(), fault) {
					t.Errorf("got %v, expected an error with %q", err, fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if string(r.Status) != c.status || r.Claims["tcb_status"] != c.status {
				t.Errorf("status is %s, expected %s", r.Status, c.status)
			}
			var ids []string
			for _, id := range r.Claims["advisory_ids"].([]any) {
				ids = append(ids, id.(string))
			}
			if got := strings.Join(ids, " "); got != c.ids {
				t.Errorf("advisories are %s, expected %s", got, c.ids)
			}
		})
	}
}

// TestTCBInfoVersion2 has the components as members, and no id.
func TestTCBInfoVersion2(t *testing.T) {
	w := fakedcap.New(t, now)
	w.UseSGX()
	tcb := map[string]any{"pcesvn": 11}
	for i, n := range fakedcap.Components {
		tcb["sgxtcbcomp"+string(rune('0'+(i+1)/10))+string(rune('0'+(i+1)%10))+"svn"] = n
	}
	delete(w.TCBInfo, "id")
	w.TCBInfo["version"] = 2
	levels(w.TCBInfo, map[string]any{"tcb": tcb, "tcbDate": "2020-01-01T00:00:00Z", "tcbStatus": "ConfigurationNeeded"})
	q := parse(t, w.Quote(fakedcap.Spec{Body: fakedcap.Enclave(nil)}))
	r, err := dcap.Verify(context.Background(), q, options(w))
	if err != nil || r.Status != dcap.ConfigurationNeeded || r.Claims["tcb_date"] != "2020-01-01T00:00:00Z" {
		t.Fatalf("got %+v, %v", r, err)
	}
	tcb["sgxtcbcomp16svn"] = 1
	if _, err := dcap.Verify(context.Background(), q, options(w)); err == nil || !strings.Contains(err.Error(), "TCB_NOT_SUPPORTED") {
		t.Errorf("got %v, expected no level", err)
	}
	delete(tcb, "sgxtcbcomp16svn")
	if _, err := dcap.Verify(context.Background(), q, options(w)); err == nil || !strings.Contains(err.Error(), "sgxtcbcomp16svn") {
		t.Errorf("got %v, expected a missing component", err)
	}
}
