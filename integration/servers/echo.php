<?php
// What an app sees of the token's header and cookie.
header('Content-Type: application/json');
$seen = ['header' => [], 'cookie' => []];
foreach ($_SERVER as $name => $value) {
	if ($name === 'HTTP_X_VIEWER_SESSION') {
		$seen['header'][] = base64_encode($value);
	}
}
if (function_exists('getallheaders')) {
	foreach (getallheaders() as $name => $value) {
		if (strcasecmp($name, 'X-Viewer-Session') === 0) {
			$seen['header'][] = base64_encode($value);
		}
	}
}
if (isset($_COOKIE['vs'])) {
	$seen['cookie'][] = base64_encode(json_encode($_COOKIE['vs'], JSON_INVALID_UTF8_SUBSTITUTE));
}
echo json_encode($seen);
