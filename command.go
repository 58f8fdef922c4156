package viewersession

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
	"github.com/viewersession/caddy-viewer-session/internal/probe"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "viewer-session",
		Usage: "[command]",
		Short: "Explains what viewer_session does with a URL, and tries out its API",
		CobraFunc: func(cmd *cobra.Command) {
			cmd.AddCommand(newMintCommand(), newExplainCommand())
		},
	})
}

// defaultKeyVariable is the one that defaultAPIKey names.
var defaultKeyVariable = strings.TrimSuffix(strings.TrimPrefix(defaultAPIKey, "{env."), "}")

func newMintCommand() *cobra.Command {
	var m mintCommand
	cmd := &cobra.Command{
		Use:   "mint {--document <id> [--permissions <names>] | --app-provided} [--user <id>] [--ttl <duration>] [--endpoint <url>] [--timeout <duration>] [--api-key-env <name> | --api-key-file <path>] [--json] [--show-token]",
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
  caddy viewer-session mint --document report-2026 --permissions read,write --user ann --api-key-file /run/secrets/dws
  caddy viewer-session mint --app-provided --user ann`,
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
			return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return r.ExitCode(), nil })(cmd, nil)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&m.document, "document", "", "the document's id")
	flags.BoolVar(&m.appProvided, "app-provided", false, "a session for pages that bring their own document")
	flags.StringVar(&m.permissions, "permissions", defaultPermission, "document permissions, separated by spaces or commas")
	flags.StringVar(&m.user, "user", "", "the user_id claim")
	flags.StringVar(&m.ttl, "ttl", "1h", "how long the token is asked to be valid: 1m to 30d")
	flags.StringVar(&m.endpoint, "endpoint", defaultEndpoint, "where tokens are minted")
	flags.BoolVar(&m.insecureEndpoint, "insecure-endpoint", false, "allow an endpoint with plain HTTP that is not on this machine")
	flags.StringVar(&m.timeout, "timeout", defaultTimeout.String(), "how long to wait for the answer: 100ms to 1m")
	flags.StringVar(&m.keyVariable, "api-key-env", defaultKeyVariable, "the environment variable that holds the API key")
	flags.StringVar(&m.keyFile, "api-key-file", "", "the file that holds the API key")
	flags.BoolVar(&m.json, "json", false, "print one JSON object")
	flags.BoolVar(&m.showToken, "show-token", false, "print the token itself as well")
	cmd.MarkFlagsMutuallyExclusive("api-key-env", "api-key-file")
	cmd.MarkFlagsMutuallyExclusive("document", "app-provided")
	cmd.MarkFlagsMutuallyExclusive("permissions", "app-provided")
	return cmd
}

func newExplainCommand() *cobra.Command {
	var file, adapter, method string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain [--config <path> [--adapter <name>]] [--method <method>] [--json] <url>",
		Short: "Says what a config does with a URL",
		Long: `
Says what a config does with a URL: which site and which viewer_session see the
request; for each route whether it matches, and if not, why; for which document a
token would be minted, with which permissions and for whom, how long it lives,
and where it goes. Nothing is started, asked or needed for it, not even the key.

Matchers beyond host, path and method count as met, and are listed as conditions,
as are handlers that may answer first. Placeholders that the URL does not settle
are shown as they are.

The exit code is
  0  if the request gets a token, as long as the conditions hold,
  1  if the command line or the config is wrong,
  2  if it gets none.`,
		Example: `  caddy viewer-session explain https://docs.example.com/documents/42
  caddy viewer-session explain --config /etc/caddy/Caddyfile --json https://docs.example.com/documents/42/session`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, _, _, err := caddycmd.LoadConfig(file, adapter)
			if err == nil && len(config) == 0 {
				err = errors.New("no config: name one with --config, or run this where the Caddyfile is")
			}
			if err != nil {
				return err
			}
			e, err := explain(config, strings.ToUpper(method), args[0], time.Now())
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetEscapeHTML(false)
				enc.SetIndent("", "  ")
				err = enc.Encode(e)
			} else {
				_, err = io.WriteString(cmd.OutOrStdout(), e.text())
			}
			if err != nil || e.Token {
				return err
			}
			cmd.SilenceErrors = true // it has been said
			return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return 2, nil })(cmd, nil)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&file, "config", "c", "", "the config file (default: the Caddyfile in this folder)")
	flags.StringVarP(&adapter, "adapter", "a", "", "the name of the config adapter (default: by the file's name)")
	flags.StringVar(&method, "method", "GET", "the request's method")
	flags.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// mintCommand is the command line's flags, and after check what they mean.
type mintCommand struct {
	document, permissions, user, ttl string
	timeout                          string
	endpoint                         string
	insecureEndpoint                 bool
	keyVariable, keyFile             string
	json, showToken, appProvided     bool

	probe probe.Probe
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// check reads the flags. No error repeats what may be a key.
func (m *mintCommand) check() error {
	if m.document == "" && !m.appProvided {
		return errors.New("--document is missing: write the document's id, or --app-provided for a page that brings its own document")
	}
	if !utf8.ValidString(m.document) || !utf8.ValidString(m.user) {
		return errors.New("--document and --user: write them as UTF-8")
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
	if err := options.check("", m.appProvided); err != nil {
		return err
	}
	if m.appProvided {
		options.Permissions = nil
	}
	m.probe = probe.Probe{
		Request:   dws.Request{DocumentID: m.document, Permissions: claims.SplitPermissions(options.Permissions), UserID: m.user, TTL: ttl, AppProvided: m.appProvided},
		ShowToken: m.showToken, KeyFile: m.keyFile, KeyVariable: m.keyVariable,
	}
	if m.probe.Timeout, err = caddy.ParseDuration(m.timeout); err != nil || m.probe.Timeout < minTimeout || m.probe.Timeout > mint.MaxTimeout {
		return fmt.Errorf("--timeout %q: write a duration from 100ms to 1m", m.timeout)
	}
	pool := PoolOptions{Endpoint: m.endpoint, InsecureEndpoint: m.insecureEndpoint}
	if m.probe.Endpoint, err = pool.parseEndpoint(); err != nil {
		return err
	}
	if m.keyFile == "" && (!variableName.MatchString(m.keyVariable) || probe.LooksLikeKey(m.keyVariable)) {
		return errors.New("--api-key-env: write the name of the environment variable that holds the key, not the key itself, which others on this machine could see")
	}
	if probe.LooksLikeKey(m.keyFile) {
		return errors.New("--api-key-file: write the path of the file that holds the key, not the key itself, which others on this machine could see")
	}
	return nil
}

// run mints one token as a handler without a transport of its own does.
func (m *mintCommand) run(ctx context.Context) *probe.Report {
	caddyCtx, cancel := caddy.NewContext(caddy.Context{Context: context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer())})
	defer cancel()
	config, err := new(PoolOptions).transportJSON(m.probe.Endpoint.Scheme)
	var mod any
	if err == nil {
		mod, err = caddyCtx.LoadModuleByID(transportModule, json.RawMessage(config))
	}
	if err != nil {
		return &probe.Report{Endpoint: m.probe.Endpoint.String(), Outcome: dws.Unavailable, Message: err.Error()}
	}
	m.probe.Transport = mod.(http.RoundTripper)
	return m.probe.Run(caddyCtx)
}

// print writes the report: what is wrong goes to stderr, but for JSON.
func (m *mintCommand) print(stdout, stderr io.Writer, r *probe.Report) error {
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
		fmt.Fprintf(&b, "clock     %s\n", clockText(r))
		if r.ExpiresAt != 0 {
			expires := time.Unix(r.ExpiresAt, 0)
			fmt.Fprintf(&b, "expires   %s, in %s\n", expires.UTC().Format(time.RFC3339), time.Until(expires).Round(time.Second))
		}
		if len(r.Asked) == 0 {
			b.WriteString("asked     for no document and no permissions\n")
		} else {
			fmt.Fprintf(&b, "asked     %s (sent as %s)\n", strings.Join(r.Asked, " "), strings.Join(r.SentAs, " and "))
		}
		switch {
		case len(r.Granted) == 0 && len(r.Asked) == 0:
			b.WriteString("granted   none are stated by the token\n")
		case len(r.Granted) == 0:
			b.WriteString("granted   not stated by the token\n")
		default:
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

func clockText(r *probe.Report) string {
	if r.ClockOffset == nil {
		return "not compared: the answer has no date"
	}
	if seconds := math.Round(*r.ClockOffset); seconds != 0 {
		return fmt.Sprintf("%+.0f s from the API's", seconds)
	}
	return "as the API's"
}
