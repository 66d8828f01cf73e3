package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestFrames(t *testing.T) {
	for _, f := range []Frame{{}, {ID: 1, Code: 2, Fields: [][]byte{{}}},
		{ID: 1<<64 - 1, Code: 255, Fields: [][]byte{[]byte("a"), {}, []byte("bc"), {0}}},
		{ID: 7, Fields: [][]byte{make([]byte, MaxFrame-headSize-4)}}} {
		var b bytes.Buffer
		if err := Write(&b, f); err != nil {
			t.Fatal(err)
		}
		got, err := Read(&b)
		if err != nil || got.ID != f.ID || got.Code != f.Code || !slices.EqualFunc(got.Fields, f.Fields, bytes.Equal) || b.Len() != 0 {
			t.Errorf("%.80v became %.80v, %v", f, got, err)
		}
	}
	for _, f := range []Frame{{Fields: make([][]byte, MaxFields+1)}, {Fields: [][]byte{make([]byte, MaxFrame-headSize-3)}},
		{Fields: [][]byte{make([]byte, MaxFrame+1)}}} {
		if err := Write(io.Discard, f); !errors.Is(err, ErrFrame) {
			t.Errorf("%d fields: %v", len(f.Fields), err)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	body := func(size uint32, rest string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, size), rest...)
	}
	for name, b := range map[string][]byte{
		"too short":    body(9, "123456789"),
		"too long":     body(MaxFrame+1, strings.Repeat("x", MaxFrame+1)),
		"greatest":     body(1<<32-1, "x"),
		"fields":       body(10, "12345678c\x05"),
		"no length":    body(10, "12345678c\x01"),
		"field length": body(14, "12345678c\x01\xff\xff\xff\xff"),
		"rest":         body(11, "12345678c\x00x"),
	} {
		if _, err := Read(bytes.NewReader(b)); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read(bytes.NewReader(nil)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if _, err := Read(bytes.NewReader(body(20, "12345678c"))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func TestFailures(t *testing.T) {
	err := fmt.Errorf("doing: %w", Fail(StatusFull, "no room for \x1b[31m%s\n", strings.Repeat("x", 1000)))
	f, perr := FailureOf(Refusal(3, err))
	if perr != nil || f.Status != StatusFull || len(f.Text) > maxText+3 || strings.ContainsAny(f.Text, "\x1b\n") {
		t.Errorf("%+v, %v", f, perr)
	}
	if StatusOf(nil) != StatusOK || StatusOf(io.EOF) != StatusFailed || StatusOf(err) != StatusFull {
		t.Error("statuses are wrong")
	}
	for _, bad := range []Frame{{}, {Code: byte(StatusLogin)}, {Code: byte(StatusFull)}, {Code: byte(statusEnd), Fields: [][]byte{{}}},
		{Code: byte(StatusFull), Fields: [][]byte{{}, {}}}} {
		if _, err := FailureOf(bad); !errors.Is(err, ErrFrame) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	_ = Write(&b, Frame{ID: 1, Code: byte(OpWrap), Fields: [][]byte{[]byte("k"), []byte(SHA256), []byte("v"), {}}})
	f.Add(b.Bytes())
	f.Add([]byte("\x00\x00\x00\x0a12345678c\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		q, err := Read(r)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := Write(&again, q); err != nil || !bytes.Equal(again.Bytes(), data[:len(data)-r.Len()]) {
			t.Fatalf("%x became %x, %v", data, again.Bytes(), err)
		}
		if failure, err := FailureOf(q); err == nil && len(failure.Text) > maxText+3 {
			t.Fatal("a long text")
		}
	})
}
