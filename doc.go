// Package viewersession is a Caddy HTTP middleware that hands a Nutrient DWS
// Viewer session token for the document in the URL to the app behind it.
//
// A request flows one way: strip → match → resolve → get a token → inject → next.
// handler.go reads like these steps; docs/design.md says where each one lives.
package viewersession
