"use strict";

async function show() {
  const ready = document.getElementById("ready");
  try {
    const about = await (await fetch("/version")).json();
    document.getElementById("version").textContent = about.version;
    const health = await (await fetch("/readyz")).json();
    ready.textContent = health.status === "ready" ? "ready: takes work" : "not ready: see below";
    const table = document.getElementById("components");
    for (const [name, state] of Object.entries(health.components)) {
      const row = table.tBodies[0].insertRow();
      row.insertCell().textContent = name;
      row.insertCell().textContent = typeof state === "string" ? state : JSON.stringify(state);
    }
    table.hidden = table.tBodies[0].rows.length === 0;
  } catch (error) {
    ready.textContent = "does not answer: " + error.message;
  }
}

show();
