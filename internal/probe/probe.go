// Package probe mints one token and says in plain words whether all is well, and
// if not, what to do.
package probe

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/secret"
)

// Outcomes beyond those of a mint.
const (
	OK         dws.Reason = "ok"
	KeyMissing dws.Reason = "key_missing"
	ClockOff   dws.Reason = "clock_off"
)

// maxClockOffset is how far the clocks may differ without a word.
const maxClockOffset = 30 * time.Second

// Probe is what to try.
type Probe struct {
	Request   dws.Request
	Endpoint  *url.URL
	Timeout   time.Duration
	Transport http.RoundTripper
	ShowToken bool

	// Where the API key is: in the file, or else in the environment variable.
	KeyFile, KeyVariable string
}

// Report is what the command found out.
type Report struct {
	OK              bool            `json:"ok"`
	Outcome         dws.Reason      `json:"outcome"`
	Message         string          `json:"message"` // in plain words
	Endpoint        string          `json:"endpoint"`
	Status          int             `json:"status,omitempty"`
	DurationSeconds float64         `json:"duration_seconds,omitempty"`
	ClockOffset     *float64        `json:"clock_offset_seconds,omitempty"` // positive: this machine is ahead
	ExpiresAt       int64           `json:"expires_at,omitempty"`
	Asked           []string        `json:"permissions_asked,omitempty"`
	SentAs          []string        `json:"permissions_sent_as,omitempty"`   // the members of the request that was answered
	Granted         []string        `json:"permissions_granted,omitempty"`   // none: not stated by the token
	StatedAs        []string        `json:"permissions_stated_as,omitempty"` // the members of the token
	Claims          json.RawMessage `json:"claims,omitempty"`
	Token           string          `json:"token,omitempty"`
}

// ExitCode is the exit code of the command.
func (r *Report) ExitCode() int {
	switch r.Outcome {
	case OK:
		return 0
	case KeyMissing:
		return 2
	case dws.KeyRefused:
		return 3
	case dws.Unavailable, dws.Timeout:
		return 4
	case ClockOff:
		return 6
	case dws.OverGranted:
		return 7
	default:
		return 5
	}
}

// Run mints one token, by the code that serves requests.
func (p *Probe) Run(ctx context.Context) *Report {
	r := &Report{Endpoint: p.Endpoint.String()}
	apiKey, source, problem := p.readKey()
	if problem != "" {
		r.Outcome, r.Message = KeyMissing, problem
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	transport := observingTransport{transport: p.Transport}
	start := time.Now()
	call := dws.Call{Request: &p.Request, Transport: &transport, Endpoint: p.Endpoint, APIKey: apiKey, Now: start, Clock: clock.Now}
	reply, err := call.Send(ctx)
	if err != nil && p.Request.MayFallBack(err, call.Form) {
		call.Form = dws.DocumentedName
		reply, err = call.Send(ctx)
	}
	r.DurationSeconds = time.Since(start).Seconds()
	r.Status = reply.StatusCode
	offset, compared := reply.Offset()
	if compared {
		r.ClockOffset = new(offset.Round(100 * time.Millisecond).Seconds())
	}
	if reply.Payload != nil {
		r.Claims = reply.Payload
		if !p.Request.AppProvided {
			r.Asked, r.SentAs = p.Request.Permissions, call.Form.Members()
		}
		r.Granted, r.StatedAs = reply.Grant.Permissions, reply.Grant.StatedAs
	}
	clockOff := offset.Abs() > maxClockOffset
	if err != nil {
		p.explain(r, err, transport.err, apiKey, source)
		if clockOff && (r.Outcome == dws.Refused || r.Outcome == dws.InvalidReply) {
			r.Outcome = ClockOff // most likely what it comes from
		}
		if clockOff {
			r.Message += "\n" + describeClock(offset)
		}
		return r
	}
	r.ExpiresAt = reply.Exp
	if p.ShowToken {
		r.Token = reply.JWT
	}
	if clockOff {
		r.Outcome = ClockOff
		r.Message = "A token was minted, but this machine's clock is off.\n" + describeClock(offset)
		return r
	}
	r.OK, r.Outcome = true, OK
	r.Message = "All is well: the API accepts the key, and minted a token that can be used."
	if !reply.HasExp {
		r.Message += "\nThe token does not say when it expires; viewer_session takes it to live for the ttl that was asked for."
	}
	if p.Request.AppProvided {
		return r // no permissions were asked for
	}
	missing, unverified := reply.Grant.Doubts(p.Request.Permissions)
	if len(missing) > 0 {
		r.Message += fmt.Sprintf("\nThe token permits less than was asked for: %s is missing.", strings.Join(missing, " and "))
	}
	if unverified != nil {
		r.Message += fmt.Sprintf("\nWhat it permits cannot be verified: %v.", unverified)
	}
	return r
}

// readKey returns the key and where it comes from, or what is wrong in plain words.
func (p *Probe) readKey() (key, source, problem string) {
	if p.KeyFile == "" {
		source = "the environment variable " + p.KeyVariable
		key = os.Getenv(p.KeyVariable)
		problem = "it is not set here. Set it to the Viewer API key of your DWS account, or name another one with --api-key-env, or a file with --api-key-file. (A Caddy that runs as a service has an environment of its own.)"
	} else {
		source = "the file " + p.KeyFile
		content, err := os.ReadFile(p.KeyFile)
		key = string(content)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			problem = "it is empty, or not there. Write the Viewer API key of your DWS account into it."
		case errors.Is(err, fs.ErrPermission):
			problem = "you may not read it. Try as the user that Caddy runs as, who has to be able to read it."
		default:
			problem = err.Error() + "."
		}
	}
	if key = strings.TrimSpace(key); key == "" {
		return "", "", "The API key is missing. It should come from " + source + ", but " + problem
	}
	if name := secret.NameInFront(key); name != "" {
		return "", "", "The API key is missing. It should come from " + source + ", but what is there begins with " + name + "=. It should be the key alone, without the name of a variable in front."
	}
	if !secret.WellFormed(key) {
		return "", "", "The API key is missing. It should come from " + source + ", but what is there holds spaces, quotes or other characters that no key has. It should be the key alone, without quotes, a name or Bearer in front."
	}
	return key, source, ""
}

// explain says in plain words why there is no token, and what to do.
func (p *Probe) explain(r *Report, err, transportErr error, apiKey, source string) {
	e, _ := errors.AsType[*dws.Error](err)
	r.Outcome = e.Reason
	switch e.Reason {
	case dws.KeyRefused:
		r.Message = fmt.Sprintf("The API refuses the key (%d). It comes from %s.\n", e.StatusCode, source)
		if LooksLikeKey(apiKey) {
			r.Message += "An account has two keys, which both begin with pdf_live_: a Viewer key and a Processor key. The Viewer API takes the Viewer key only. If it is that one, see that it is complete, and still valid."
		} else {
			r.Message += "The keys of DWS begin with pdf_live_, and this one does not: see that it is the Viewer API key of your DWS account, and complete."
		}
	case dws.Throttled:
		r.Message = "The API asks to slow down: the account has used up what it may do for now. The key is not what is wrong."
		if !e.RetryAt.IsZero() {
			r.Message += fmt.Sprintf(" It may be asked again in %s.", clock.Now().Until(e.RetryAt).Round(time.Second))
		}
	case dws.Timeout:
		r.Message = fmt.Sprintf("The API does not answer within %s: %s.\n%s", p.Timeout, e, adviceOnReach)
	case dws.Unavailable:
		if transportErr == nil { // it answered, if not to the end
			r.Message = fmt.Sprintf("The API is in trouble, or something else answers in its place: %s.", e)
		} else {
			r.Message = fmt.Sprintf("The API does not answer: %s.\n%s", e, adviceOn(transportErr))
		}
	case dws.OverGranted:
		r.Message = fmt.Sprintf("The API grants more than it is asked for: %s.\nviewer_session does not use such a token, and answers 502.", e)
	default: // rejected, invalid reply
		r.Message = fmt.Sprintf("The API answers, but not with a token that can be used: %s.", e)
	}
}

const adviceOnReach = "Is it blocked by a firewall? If the network needs a proxy, try HTTPS_PROXY=... in front of this command, and network_proxy in viewer_session's transport."

// adviceOn says what to do about an error of the network.
func adviceOn(err error) string {
	var (
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		hostname  x509.HostnameError
	)
	text := err.Error() // Caddy's DialError does not unwrap
	switch {
	case strings.HasPrefix(text, "proxyconnect "):
		return "The network proxy does not answer: check HTTPS_PROXY."
	case strings.Contains(text, ": lookup "):
		return "Its name cannot be looked up: check --endpoint, and this machine's DNS."
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Sprintf("Its certificate is not valid at this time: check this machine's clock, which says %s.", time.Now().UTC().Format(time.DateTime+" MST"))
	case errors.As(err, &authority), errors.As(err, &invalid):
		return "Its certificate is not signed by an authority that this machine knows. If a proxy looks into the traffic, try SSL_CERT_FILE=... with its authority's certificate in front of this command, and tls_trust_pool in viewer_session's transport."
	case errors.As(err, &hostname):
		return "Its certificate is for another name: check --endpoint, and what is in between."
	case strings.Contains(text, "refused"):
		return "Nothing accepts connections there: check --endpoint."
	default:
		return adviceOnReach
	}
}

// describeClock says how far this machine's clock is off, and what it does.
func describeClock(offset time.Duration) string {
	side, effect := "ahead of", "tokens live longer than ttl says"
	if offset < 0 {
		side, effect = "behind", "tokens end earlier than the gateway thinks, and browsers get tokens that have expired"
	}
	return fmt.Sprintf("This machine's clock is %s %s the API's: %s. Let it be set by the network (NTP).", offset.Abs().Round(time.Second), side, effect)
}

// observingTransport is a transport that keeps its last error as it is.
type observingTransport struct {
	transport http.RoundTripper
	err       error
}

// RoundTrip implements http.RoundTripper.
func (o *observingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := o.transport.RoundTrip(req)
	o.err = err
	return resp, err
}

// LooksLikeKey reports whether s begins as the keys of DWS do.
func LooksLikeKey(s string) bool { return strings.HasPrefix(s, "pdf_live_") }
