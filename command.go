package viewersession

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "viewer-session",
		Usage: "[command]",
		Short: "Tries out the API that viewer_session gets its tokens from",
		CobraFunc: func(cmd *cobra.Command) {
			cmd.AddCommand(newMintCommand())
		},
	})
}

// defaultKeyVariable is the one that DefaultAPIKey names.
var defaultKeyVariable = strings.TrimSuffix(strings.TrimPrefix(DefaultAPIKey, "{env."), "}")

// outcomes of the command beyond those of a mint.
const (
	outcomeKeyMissing outcome = "key_missing"
	outcomeClockOff   outcome = "clock_off"
)

func newMintCommand() *cobra.Command {
	var m mintCommand
	cmd := &cobra.Command{
		Use:   "mint --document <id> [--permissions <names>] [--user <id>] [--ttl <duration>] [--endpoint <url>] [--timeout <duration>] [--api-key-env <name> | --api-key-file <path>] [--json] [--show-token]",
		Short: "Mints one session token and says whether all is well",
		Long: `
Mints one session token, as the viewer_session handler does, and shows what came
back: the token's claims, the permissions that were asked for and those that it
states, when it expires, and how long that took. The token itself is only shown
with --show-token.

If it does not work, it says why: the API key is missing, or refused; the
endpoint cannot be reached; this machine's clock is off. No config is read, and
a running Caddy is not involved. Environment variables for proxies and
certificates (HTTPS_PROXY; on Linux, SSL_CERT_FILE) have effect.

The exit code is
  0  if all is well,
  1  if the command line is wrong,
  2  if the API key is missing,
  3  if the API refuses the key,
  4  if the API cannot be reached, or does not answer in time,
  5  if it answers, but not with a token that can be used,
  6  if this machine's clock is more than 30 seconds from the API's,
  7  if the token permits more than was asked for, so that viewer_session would
     not use it.`,
		Example: `  caddy viewer-session mint --document report-2026
  caddy viewer-session mint --document report-2026 --permissions read,write --user ann --api-key-file /run/secrets/dws`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := m.check(); err != nil {
				return err
			}
			r := m.run(cmd.Context())
			if err := m.print(cmd.OutOrStdout(), cmd.ErrOrStderr(), r); err != nil {
				return err
			}
			cmd.SilenceErrors = true // it has been said
			return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return r.exitCode(), nil })(cmd, nil)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&m.document, "document", "", "the document's id (required)")
	flags.StringVar(&m.permissions, "permissions", DefaultPermission, "document permissions, separated by spaces or commas")
	flags.StringVar(&m.user, "user", "", "the user_id claim")
	flags.StringVar(&m.ttl, "ttl", "1h", "how long the token is asked to be valid: 1m to 30d")
	flags.StringVar(&m.endpoint, "endpoint", DefaultEndpoint, "where tokens are minted")
	flags.BoolVar(&m.insecureEndpoint, "insecure-endpoint", false, "allow an endpoint with plain HTTP that is not on this machine")
	flags.StringVar(&m.timeout, "timeout", DefaultTimeout.String(), "how long to wait for the answer: 100ms to 1m")
	flags.StringVar(&m.keyVariable, "api-key-env", defaultKeyVariable, "the environment variable that holds the API key")
	flags.StringVar(&m.keyFile, "api-key-file", "", "the file that holds the API key")
	flags.BoolVar(&m.json, "json", false, "print one JSON object")
	flags.BoolVar(&m.showToken, "show-token", false, "print the token itself as well")
	cmd.MarkFlagsMutuallyExclusive("api-key-env", "api-key-file")
	_ = cmd.MarkFlagRequired("document") // it exists
	return cmd
}

// mintCommand is the command line's flags, and after check what they mean.
type mintCommand struct {
	document, permissions, user, ttl string
	timeout                          string
	endpoint                         string
	insecureEndpoint                 bool
	keyVariable, keyFile             string
	json, showToken                  bool

	ask    ask
	url    *url.URL
	within time.Duration
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// check reads the flags. No error repeats what may be a key.
func (m *mintCommand) check() error {
	if m.document == "" || !utf8.ValidString(m.document) || !utf8.ValidString(m.user) {
		return errors.New("--document: write the document's id, as UTF-8 (and --user as well)")
	}
	ttl, err := caddy.ParseDuration(m.ttl)
	if err != nil {
		return fmt.Errorf("--ttl %q is not a duration: write one such as 15m, 1h or 7d", m.ttl)
	}
	options := TokenOptions{
		Permissions: []string{m.permissions},
		TTL:         caddy.Duration(ttl),
		Shared:      true, // it is nobody else's
	}.over(TokenOptions{})
	if err := options.check(""); err != nil {
		return err
	}
	m.ask = ask{documentID: m.document, permissions: splitPermissions(options.Permissions), userID: m.user, ttl: ttl}
	if m.within, err = caddy.ParseDuration(m.timeout); err != nil || m.within < minTimeout || m.within > maxTimeout {
		return fmt.Errorf("--timeout %q: write a duration from 100ms to 1m", m.timeout)
	}
	h := Handler{Endpoint: m.endpoint, InsecureEndpoint: m.insecureEndpoint}
	if m.url, err = h.parseEndpoint(); err != nil {
		return err
	}
	if m.keyFile == "" && (!variableName.MatchString(m.keyVariable) || looksLikeKey(m.keyVariable)) {
		return errors.New("--api-key-env: write the name of the environment variable that holds the key, not the key itself, which others on this machine could see")
	}
	if looksLikeKey(m.keyFile) {
		return errors.New("--api-key-file: write the path of the file that holds the key, not the key itself, which others on this machine could see")
	}
	return nil
}

func looksLikeKey(s string) bool { return strings.HasPrefix(s, "pdf_live_") }

// report is what the command found out.
type report struct {
	OK              bool            `json:"ok"`
	Outcome         outcome         `json:"outcome"`
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

func (r *report) exitCode() int {
	switch r.Outcome {
	case outcomeOK:
		return 0
	case outcomeKeyMissing:
		return 2
	case outcome(reasonKeyRefused):
		return 3
	case outcome(reasonUnavailable), outcome(reasonTimeout):
		return 4
	case outcomeClockOff:
		return 6
	case outcome(reasonOverGranted):
		return 7
	default:
		return 5
	}
}

// run mints one token, by the code that serves requests.
func (m *mintCommand) run(ctx context.Context) *report {
	r := &report{Endpoint: m.url.String()}
	apiKey, source, problem := m.readKey()
	if problem != "" {
		r.Outcome, r.Message = outcomeKeyMissing, problem
		return r
	}
	caddyCtx, cancel := caddy.NewContext(caddy.Context{Context: context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer())})
	defer cancel()
	transport, err := defaultTransport(caddyCtx, m.url.Scheme)
	if err != nil {
		r.Outcome, r.Message = outcome(reasonUnavailable), err.Error()
		return r
	}
	mintCtx, cancelMint := context.WithTimeout(caddyCtx, m.within)
	defer cancelMint()
	observed := observingTransport{transport: transport}
	start := time.Now()
	request := mintRequest{ask: &m.ask, transport: &observed, endpoint: m.url, apiKey: apiKey, now: start, clock: clock.Now}
	minted, err := mintToken(mintCtx, request)
	if err != nil && m.ask.mayFallBack(asFailure(err), request.form) {
		request.form = documentedName
		minted, err = mintToken(mintCtx, request)
	}
	r.DurationSeconds = time.Since(start).Seconds()
	r.Status = minted.status
	offset, compared := minted.offset()
	if compared {
		r.ClockOffset = new(offset.Round(100 * time.Millisecond).Seconds())
	}
	if minted.payload != nil {
		r.Claims = minted.payload
		r.Asked, r.SentAs = m.ask.permissions, request.form.members()
		r.Granted, r.StatedAs = minted.grant.permissions, minted.grant.statedAs
	}
	clockOff := offset.Abs() > maxClockOffset
	if err != nil {
		m.explain(r, asFailure(err), &observed, apiKey, source)
		if clockOff && (r.Outcome == outcome(reasonRejected) || r.Outcome == outcome(reasonInvalidReply)) {
			r.Outcome = outcomeClockOff // most likely what it comes from
		}
		if clockOff {
			r.Message += "\n" + describeClock(offset)
		}
		return r
	}
	r.ExpiresAt = minted.exp
	if m.showToken {
		r.Token = minted.jwt
	}
	if clockOff {
		r.Outcome = outcomeClockOff
		r.Message = "A token was minted, but this machine's clock is off.\n" + describeClock(offset)
		return r
	}
	r.OK, r.Outcome = true, outcomeOK
	r.Message = "All is well: the API accepts the key, and minted a token that can be used."
	if !minted.hasExp {
		r.Message += "\nThe token does not say when it expires; viewer_session takes it to live for the ttl that was asked for."
	}
	missing, unverified := minted.grant.doubts(m.ask.permissions)
	if len(missing) > 0 {
		r.Message += fmt.Sprintf("\nThe token permits less than was asked for: %s is missing.", strings.Join(missing, " and "))
	}
	if unverified != nil {
		r.Message += fmt.Sprintf("\nWhat it permits cannot be verified: %v.", unverified)
	}
	return r
}

// defaultTransport is what a handler without a transport of its own uses.
func defaultTransport(ctx caddy.Context, scheme string) (http.RoundTripper, error) {
	config, err := new(Handler).transportJSON(scheme)
	if err != nil {
		return nil, err
	}
	mod, err := ctx.LoadModuleByID(transportModule, json.RawMessage(config))
	if err != nil {
		return nil, err
	}
	return mod.(http.RoundTripper), nil
}

// readKey returns the key and where it comes from, or what is wrong in plain words.
func (m *mintCommand) readKey() (key, source, problem string) {
	if m.keyFile == "" {
		source = "the environment variable " + m.keyVariable
		key = os.Getenv(m.keyVariable)
		problem = "it is not set here. Set it to the Viewer API key of your DWS account, or name another one with --api-key-env, or a file with --api-key-file. (A Caddy that runs as a service has an environment of its own.)"
	} else {
		source = "the file " + m.keyFile
		content, err := os.ReadFile(m.keyFile)
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
	if !wellFormedKey(key) {
		return "", "", "The API key is missing. It should come from " + source + ", but what is there holds spaces, quotes or other characters that no key has. It should be the key alone, without quotes, a name or Bearer in front."
	}
	return key, source, ""
}

// explain says in plain words why there is no token, and what to do.
func (m *mintCommand) explain(r *report, f *failure, observed *observingTransport, apiKey, source string) {
	r.Outcome = outcome(f.reason)
	switch f.reason {
	case reasonKeyRefused:
		r.Message = fmt.Sprintf("The API refuses the key (%d). It comes from %s.\n", f.answered, source)
		if looksLikeKey(apiKey) {
			r.Message += "An account has two keys, which both begin with pdf_live_: a Viewer key and a Processor key. The Viewer API takes the Viewer key only. If it is that one, see that it is complete, and still valid."
		} else {
			r.Message += "The keys of DWS begin with pdf_live_, and this one does not: see that it is the Viewer API key of your DWS account, and complete."
		}
	case reasonThrottled:
		r.Message = "The API asks to slow down: the account has used up what it may do for now. The key is not what is wrong."
		if !f.retryAt.IsZero() {
			r.Message += fmt.Sprintf(" It may be asked again in %s.", clock.Now().Until(f.retryAt).Round(time.Second))
		}
	case reasonTimeout:
		r.Message = fmt.Sprintf("The API does not answer within %s: %s.\n%s", m.within, f, adviceOnReach)
	case reasonUnavailable:
		if observed.err == nil { // it answered, if not to the end
			r.Message = fmt.Sprintf("The API is in trouble, or something else answers in its place: %s.", f)
		} else {
			r.Message = fmt.Sprintf("The API does not answer: %s.\n%s", f, adviceOn(observed.err))
		}
	case reasonOverGranted:
		r.Message = fmt.Sprintf("The API grants more than it is asked for: %s.\nviewer_session does not use such a token, and answers 502.", f)
	default: // rejected, invalid reply
		r.Message = fmt.Sprintf("The API answers, but not with a token that can be used: %s.", f)
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
		return "Its certificate is for another name: check --endpoint, and what stands in between."
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

// print writes the report: what is wrong goes to stderr, but for JSON.
func (m *mintCommand) print(stdout, stderr io.Writer, r *report) error {
	if m.json {
		enc := json.NewEncoder(stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	var b bytes.Buffer
	if r.Claims != nil {
		fmt.Fprintf(&b, "endpoint  %s\n", r.Endpoint)
		fmt.Fprintf(&b, "answer    %d, after %s\n", r.Status, time.Duration(r.DurationSeconds*float64(time.Second)).Round(100*time.Microsecond))
		fmt.Fprintf(&b, "clock     %s\n", r.clock())
		if r.ExpiresAt != 0 {
			expires := time.Unix(r.ExpiresAt, 0)
			fmt.Fprintf(&b, "expires   %s, in %s\n", expires.UTC().Format(time.RFC3339), time.Until(expires).Round(time.Second))
		}
		fmt.Fprintf(&b, "asked     %s (sent as %s)\n", strings.Join(r.Asked, " "), strings.Join(r.SentAs, " and "))
		if len(r.Granted) == 0 {
			b.WriteString("granted   not stated by the token\n")
		} else {
			fmt.Fprintf(&b, "granted   %s (stated as %s)\n", strings.Join(r.Granted, " "), strings.Join(r.StatedAs, " and "))
		}
		b.WriteString("claims    ")
		if err := json.Indent(&b, r.Claims, "          ", "  "); err != nil {
			return err // they were parsed before
		}
		b.WriteByte('\n')
		if r.Token != "" {
			fmt.Fprintf(&b, "token     %s\n", r.Token)
		}
		b.WriteByte('\n')
	}
	if r.OK {
		fmt.Fprintln(&b, r.Message)
	} else {
		fmt.Fprintln(stderr, r.Message)
	}
	_, err := b.WriteTo(stdout)
	return err
}

func (r *report) clock() string {
	if r.ClockOffset == nil {
		return "not compared: the answer has no date"
	}
	if seconds := math.Round(*r.ClockOffset); seconds != 0 {
		return fmt.Sprintf("%+.0f s from the API's", seconds)
	}
	return "as the API's"
}
