//! Tenants, their quotas and access keys.

use super::{Answer, Operator, describe};
use crate::model::Quota;
use crate::plan::tenancy;
use crate::refusal::Refusal;
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use bixi_api::operator::{AccessKeyDescription, TenantChange, TenantCreate, TenantDescription};

/// All tenants.
#[utoipa::path(get, path = "/v1/tenants", responses((status = 200, body = Vec<TenantDescription>)))]
pub(super) async fn list(State(operator): State<Operator>) -> Answer<Vec<TenantDescription>> {
    let view = operator.control.view();
    Ok(Json(view.tenants.iter().map(|tenant| describe::tenant(&view, tenant)).collect()))
}

/// A new tenant, with a network of its own.
#[utoipa::path(post, path = "/v1/tenants", request_body = TenantCreate,
    responses((status = 200, body = TenantDescription)))]
pub(super) async fn create(
    State(operator): State<Operator>,
    create: Result<Json<TenantCreate>, JsonRejection>,
) -> Answer<TenantDescription> {
    let Json(create) = create?;
    let quota = create.quota.as_ref().map_or_else(Quota::default, describe::quota);
    let zone = operator.control.place().zone.clone();
    let plan = operator.control.change(|view, _, context| {
        tenancy::new_tenant(view, &create.name, quota.clone(), &zone, context)
    });
    let tenant = plan.await.map_err(Refusal::from)?;
    Ok(Json(describe::tenant(&operator.control.view(), &tenant)))
}

/// Other quotas for a tenant.
#[utoipa::path(patch, path = "/v1/tenants/{id}", request_body = TenantChange,
    responses((status = 200, body = TenantDescription)))]
pub(super) async fn change(
    State(operator): State<Operator>,
    Path(id): Path<String>,
    change: Result<Json<TenantChange>, JsonRejection>,
) -> Answer<TenantDescription> {
    let quota = describe::quota(&change?.0.quota);
    let plan = operator
        .control
        .change(|view, _, _| Ok((tenancy::set_quota(view, &id, quota.clone())?, ())));
    plan.await.map_err(Refusal::from)?;
    let view = operator.control.view();
    Ok(Json(describe::tenant(&view, tenancy::tenant(&view, &id)?)))
}

/// Removes a tenant that has nothing left.
#[utoipa::path(delete, path = "/v1/tenants/{id}", responses((status = 200)))]
pub(super) async fn remove(State(operator): State<Operator>, Path(id): Path<String>) -> Answer<()> {
    let plan = operator.control.change(|view, _, _| {
        let tenant = tenancy::tenant(view, &id)?;
        Ok((tenancy::remove_tenant(view, &tenant.id)?, ()))
    });
    Ok(Json(plan.await.map_err(Refusal::from)?))
}

/// A tenant's access keys, without their secrets.
#[utoipa::path(get, path = "/v1/tenants/{id}/access-keys",
    responses((status = 200, body = Vec<AccessKeyDescription>)))]
pub(super) async fn keys(
    State(operator): State<Operator>,
    Path(id): Path<String>,
) -> Answer<Vec<AccessKeyDescription>> {
    let view = operator.control.view();
    let tenant = tenancy::tenant(&view, &id)?;
    let keys = view.access_keys.iter().filter(|key| key.tenant == tenant.id);
    Ok(Json(keys.map(|key| describe::key(key, false)).collect()))
}

/// A new access key, with its secret.
#[utoipa::path(post, path = "/v1/tenants/{id}/access-keys",
    responses((status = 200, body = AccessKeyDescription)))]
pub(super) async fn create_key(
    State(operator): State<Operator>,
    Path(id): Path<String>,
) -> Answer<AccessKeyDescription> {
    let plan = operator.control.change(|view, _, context| tenancy::new_key(view, &id, context));
    Ok(Json(describe::key(&plan.await.map_err(Refusal::from)?, true)))
}

/// Removes an access key.
#[utoipa::path(delete, path = "/v1/access-keys/{id}", responses((status = 200)))]
pub(super) async fn remove_key(
    State(operator): State<Operator>,
    Path(id): Path<String>,
) -> Answer<()> {
    let plan = operator.control.change(|view, _, _| Ok((tenancy::remove_key(view, &id)?, ())));
    Ok(Json(plan.await.map_err(Refusal::from)?))
}
