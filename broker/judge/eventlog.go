package judge

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister/cloister/tee/eventlog"
	"github.com/cloister/cloister/tee/quote"
)

// eventLog judges a log by itself: against register values, or against a quote that has them signed.
func (j *judging) eventLog() {
	log, err := eventlog.Parse(j.Evidence)
	if err != nil {
		j.refuse("%v", err)
		return
	}
	measured := slices.ContainsFunc(log.Events, func(e eventlog.Event) bool { return e.Type != eventlog.NoAction })
	if !measured {
		j.open(Empty, "the event log has %d records and no measured event, expected one", len(log.Events))
		return
	}
	if j.Events != nil && len(log.Events) != *j.Events {
		j.refuse("the event log has %d records, expected %d as given by the caller", len(log.Events), *j.Events)
	}
	j.claim("events", int64(len(log.Events)))
	j.replay(log)
	if j.TDQuote != nil {
		j.logOfQuote(log)
	} else if len(j.Replay) == 0 && len(j.bad) == 0 {
		j.open(ParseOnly, "no quote and no register values given, expected either: a log proves nothing by itself")
	}
	j.content(log)
}

func algOf(name string) (eventlog.Alg, bool) {
	algs := map[string]eventlog.Alg{"sha1": eventlog.SHA1, "sha256": eventlog.SHA256, "sha384": eventlog.SHA384,
		"sha512": eventlog.SHA512, "sm3": eventlog.SM3}
	a, ok := algs[strings.ToLower(name)]
	return a, ok
}

// replay compares the registers that the log leads to with those given, and claims them.
func (j *judging) replay(log *eventlog.Log) {
	replayed := map[string]any{}
	for _, alg := range log.Algs {
		if alg.New() == nil {
			continue
		}
		registers, err := log.Replay(alg)
		if err != nil {
			continue // a bank that not every event has a digest for; it counts only if the caller asks for it
		}
		values := map[string]any{}
		for i, v := range registers {
			values[strconv.FormatUint(uint64(i), 10)] = hex.EncodeToString(v)
		}
		replayed[alg.String()] = values
	}
	j.claim("replay", replayed)
	for bank, want := range j.Replay {
		alg, ok := algOf(bank)
		if !ok {
			j.refuse("bank of the expected registers is %.16q, expected sha1, sha256, sha384, sha512 or sm3", bank)
			continue
		}
		registers, err := log.Replay(alg)
		if err != nil {
			j.refuse("%v", err)
			continue
		}
		j.compareReplay(bank, registers, want)
	}
}

func (j *judging) compareReplay(bank string, got map[uint32][]byte, want map[string]string) {
	for index, value := range want {
		i, err := strconv.ParseUint(index, 10, 32)
		if err != nil {
			j.refuse("register %.16q of the expected registers is no number", index)
			continue
		}
		if is := hex.EncodeToString(got[uint32(i)]); !strings.EqualFold(is, value) {
			j.refuse("the log gives %s register %d = %s, expected %s as given by the caller", bank, i, is, value)
		}
	}
	if len(got) > len(want) {
		j.refuse("the log speaks of %d %s registers, expected %d as given by the caller", len(got), bank, len(want))
	}
}

// logOfQuote holds the log against the registers of a TD quote, whose signatures must be good.
func (j *judging) logOfQuote(log *eventlog.Log) {
	q, err := quote.Parse(j.TDQuote)
	if err != nil {
		j.refuse("the quote: %v", err)
		return
	}
	if q.TD == nil {
		j.refuse("the quote is of TEE type %v, expected TDX", q.TEE)
		return
	}
	claims := j.quoteClaims(j.TDQuote, q)
	if claims == nil {
		return
	}
	j.addClaims(claims)
	registers, err := log.Replay(eventlog.SHA384)
	if err != nil {
		j.refuse("%v", err)
		return
	}
	j.compareRTMR(registers, q.TD.RTMR[:])
}

// compareRTMR tells a log that stops early, and is right as far as it goes, from one that was changed.
func (j *judging) compareRTMR(got map[uint32][]byte, quoted [][]byte) {
	var faults []string
	silent := false // the log does not speak of a register that was extended
	for i, want := range quoted {
		value, spoken := got[uint32(i)+1]
		if !spoken {
			value = make([]byte, len(want))
		}
		if bytes.Equal(value, want) {
			continue
		}
		silent = silent || !spoken
		faults = append(faults, fmt.Sprintf("the log gives rtmr_%d = %x, expected %x as quoted", i, value, want))
	}
	if len(faults) == 0 {
		return
	}
	word := Invalid
	if silent && bytes.Equal(got[1], quoted[0]) {
		word = Partial
	}
	j.refuseAs(word, "%s", strings.Join(faults, "; "))
}

// content checks events of types whose digest is that of their content: what a policy reads in others is the word of whoever wrote
// the log.
func (j *judging) content(log *eventlog.Log) {
	for i := range log.Events {
		e := &log.Events[i]
		sources := contents(e)
		if len(sources) == 0 || !log.CryptoAgile && e.Type.String() == "EV_S_CRTM_VERSION" {
			continue
		}
		for _, d := range e.Digests {
			hash := func(b []byte) bool { return bytes.Equal(d.Alg.Sum(b), d.Sum) }
			if d.Alg.New() != nil && !slices.ContainsFunc(sources, hash) {
				j.refuseAs(ContentCheck, "content of event %d (%v, register %d) has the %v digest %x, expected %x as logged",
					i, e.Type, e.Index, d.Alg, d.Alg.Sum(sources[0]), d.Sum)
				break
			}
		}
	}
}

// contents is what the digest of an event may be of; nothing for types whose content only describes what was measured.
func contents(e *eventlog.Event) [][]byte {
	switch e.Type.String() {
	case "EV_SEPARATOR", "EV_EFI_ACTION", "EV_EFI_GPT_EVENT", "EV_EFI_VARIABLE_DRIVER_CONFIG", "EV_S_CRTM_VERSION", "EV_NONHOST_INFO":
		return [][]byte{e.Data}
	case "EV_EFI_VARIABLE_BOOT", "EV_EFI_VARIABLE_BOOT2":
		if value, ok := variableValue(e.Data); ok {
			return [][]byte{e.Data, value}
		}
		return [][]byte{e.Data}
	case "EV_EVENT_TAG":
		if _, ok, _ := eventlog.ParseAAEL(e); ok {
			return [][]byte{e.Data}
		}
	case "EV_IPL":
		return commandLine(e.Data)
	}
	return nil
}

// variableValue is the data of a UEFI variable: GUID, two lengths, name in UTF-16, data.
func variableValue(data []byte) ([]byte, bool) {
	if len(data) < 32 {
		return nil, false
	}
	name, size := binary.LittleEndian.Uint64(data[16:]), binary.LittleEndian.Uint64(data[24:])
	rest := data[32:]
	if name > uint64(len(rest)/2) || size > uint64(len(rest))-2*name {
		return nil, false
	}
	return rest[2*name:][:size], true
}

// commandLine is what GRUB measures of a command: the text after its label, with or without the zero byte at the end.
func commandLine(data []byte) [][]byte {
	for _, label := range []string{"grub_cmd: ", "kernel_cmdline: ", "module_cmdline: "} {
		if rest, ok := bytes.CutPrefix(data, []byte(label)); ok {
			return [][]byte{bytes.TrimRight(rest, "\x00"), rest}
		}
	}
	return nil
}
