package emulator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// Fault says how requests to /viewer/sessions go wrong. The zero value is no
// fault.
type Fault struct {
	// How long to wait before answering; for "drip", between two bytes. Ends
	// when the client leaves. Default: none.
	Delay caddy.Duration `json:"delay,omitempty"`

	// What to answer:
	//
	//   - "" (default): the normal answer
	//   - "status": an error with Status, and with RetryAfter if that is set
	//   - "hang": nothing, until the client leaves or Close is called
	//   - "break_off": headers and half of the normal body, then the connection ends
	//   - "drip": the normal answer, one byte every Delay
	//   - "grant_all": a token that permits everything, whatever was asked for
	//   - "unstated": a token that does not say what it permits
	//   - "rubbish": 200 with an HTML page
	//   - "empty": 201 without a body
	//   - "huge": 201 with 10 MB of JSON
	//   - "redirect": 307 to Location
	//   - "body": 201 with Body
	Mode string `json:"mode,omitempty"`

	// For mode "status", 400 to 599.
	Status int `json:"status,omitempty"`
	// For mode "status", sent as it is. Default: no Retry-After header.
	RetryAfter string `json:"retry_after,omitempty"`
	// For mode "redirect".
	Location string `json:"location,omitempty"`
	// For mode "body", sent as it is, e.g. {"jwt":"not a token"}.
	Body string `json:"body,omitempty"`

	// Only for requests that ask for this document. Default: for all.
	DocumentID string `json:"document_id,omitempty"`
	// For so many requests, then no more. Default: until changed.
	Times int `json:"times,omitempty"`
}

// Validate returns what is wrong with the fault, if anything.
func (f Fault) Validate() error {
	if f.Delay < 0 {
		return errors.New("delay must not be negative")
	}
	if f.Times < 0 {
		return errors.New("times must not be negative; 0 means until changed")
	}
	switch f.Mode {
	case "", "hang", "break_off", "grant_all", "unstated", "rubbish", "empty", "huge", "body":
	case "status":
		if f.Status < 400 || f.Status > 599 {
			return errors.New(`mode "status" needs a status from 400 to 599`)
		}
	case "drip":
		if f.Delay == 0 {
			return errors.New(`mode "drip" needs a delay, the time between two bytes`)
		}
	case "redirect":
		if f.Location == "" {
			return errors.New(`mode "redirect" needs a location`)
		}
	default:
		return fmt.Errorf("unknown mode %q: use status, hang, break_off, drip, grant_all, unstated, rubbish, empty, huge, redirect or body", f.Mode)
	}
	return nil
}

// SetFault replaces the fault; Fault{} ends it. Requests already under way keep
// the one they began with. It panics if f is not valid.
func (e *Emulator) SetFault(f Fault) {
	if err := f.Validate(); err != nil {
		panic("emulator: " + err.Error())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fault = f
}

// takeFault returns the fault that a request for the documents meets.
func (e *Emulator) takeFault(documents []string) Fault {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.fault
	if f.DocumentID != "" && !slices.Contains(documents, f.DocumentID) {
		return Fault{}
	}
	switch f.Times {
	case 0:
	case 1:
		e.fault = Fault{}
	default:
		e.fault.Times--
	}
	return f
}

// holdUp keeps the request waiting and tells whether to answer it at all.
func (e *Emulator) holdUp(ctx context.Context, f Fault) bool {
	if f.Mode != "drip" && !e.wait(ctx, time.Duration(f.Delay)) {
		return false
	}
	if f.Mode == "hang" {
		select {
		case <-ctx.Done():
		case <-e.closed:
		}
		// Returning would send an empty 200.
		panic(http.ErrAbortHandler)
	}
	return true
}

// wait returns false if the client has left.
func (e *Emulator) wait(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-e.closed:
	case <-ctx.Done():
		return false
	}
	return true
}

// answer returns what takes the place of the normal answer, if anything does.
func (f Fault) answer() (answer, bool) {
	created := func(body []byte) answer {
		return answer{http.StatusCreated, http.Header{"Content-Type": {"application/json"}}, body}
	}
	switch f.Mode {
	case "status":
		a := apiError(f.Status, "the emulator was told to answer this")
		if f.RetryAfter != "" {
			a.header.Set("Retry-After", f.RetryAfter)
		}
		return a, true
	case "rubbish":
		return answer{
			http.StatusOK,
			http.Header{"Content-Type": {"text/html; charset=utf-8"}},
			[]byte("<!doctype html>\n<title>Welcome</title>\n<p>It works!</p>\n"),
		}, true
	case "empty":
		return created(nil), true
	case "huge":
		return created(slices.Concat([]byte(`{"jwt":"`), bytes.Repeat([]byte("a"), 10_000_000), []byte(`"}`))), true
	case "redirect":
		return answer{http.StatusTemporaryRedirect, http.Header{"Location": {f.Location}}, nil}, true
	case "body":
		return created([]byte(f.Body)), true
	}
	return answer{}, false
}

// spoil writes the answer the way the fault wants it.
func (e *Emulator) spoil(w http.ResponseWriter, r *http.Request, f Fault, a answer) {
	if f.Mode != "break_off" && f.Mode != "drip" {
		a.write(w)
		return
	}
	send := func(part []byte) {
		w.Write(part)
		_ = http.NewResponseController(w).Flush()
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	a.writeHeader(w)
	if f.Mode == "break_off" {
		send(a.body[:len(a.body)/2])
		panic(http.ErrAbortHandler)
	}
	for i := range a.body {
		if !e.wait(r.Context(), time.Duration(f.Delay)) {
			return
		}
		send(a.body[i : i+1])
	}
}
